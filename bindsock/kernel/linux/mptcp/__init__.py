"""Multipath TCP on Linux: sockets, their subflows, and the kernel's path managers."""
