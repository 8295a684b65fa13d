"""Replicas that are network namespaces: the Linux kernel's TCP on both sides, and a real web server."""
