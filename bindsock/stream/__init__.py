"""Streams on the event loop's own transport: ended, or moved by multipath, when the interface is lost."""
