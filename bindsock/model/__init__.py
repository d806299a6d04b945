"""Immutable values: readings of the network, decisions, paths and changes."""
