"""Multipath TCP: the byte stream moves from one interface to another."""
