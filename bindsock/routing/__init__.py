"""Decides which interface to use: pure functions over values."""
