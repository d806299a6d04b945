"""Multipath TCP: moves a byte stream from one interface to another by its subflows."""
