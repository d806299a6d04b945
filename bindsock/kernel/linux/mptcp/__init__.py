"""Multipath TCP on Linux: the sockets, their subflows, and the path managers of the kernel."""
