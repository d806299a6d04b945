"""For tests, ours and yours: scripted networks and, on Linux, real ones in namespaces."""
