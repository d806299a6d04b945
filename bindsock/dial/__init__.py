"""Dials a host: resolves its name, decides, binds, and races the addresses."""
