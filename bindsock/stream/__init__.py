"""Follows streams on the event loop's own transport: ends them, or moves them by multipath, when the interface is lost."""
