"""Which interface: pure functions over values."""
