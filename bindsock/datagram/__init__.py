"""Datagram endpoints that stay on the effective interface."""
