"""Streams that outlive their connection: one stable transport, and connections that are replaced beneath it."""
