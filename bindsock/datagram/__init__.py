"""Datagram endpoints that move with the effective interface."""
