"""Watching others' connections: which flow a packet belongs to, what state it is in, and its numbers translated."""
