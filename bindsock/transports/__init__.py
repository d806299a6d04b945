"""Datagram and stream transports that stay on the effective interface."""
