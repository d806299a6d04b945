"""The values: what a reading of the network, a decision and a change are."""
