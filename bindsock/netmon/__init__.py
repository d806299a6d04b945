"""Watches the network: kernel events become readings, readings become decisions, decisions reach the followers."""
