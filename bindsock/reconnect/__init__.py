"""Streams that outlive their connection: one stable transport whose connection is replaced when its path is lost."""
