"""Names, decisions, binding and happy eyeballs: from a host to a connected, bound socket."""
