"""Watches the network: turns kernel events into readings, readings into decisions, and passes these to the followers."""
