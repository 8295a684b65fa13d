"""Bytes to values and back: no time, no state."""
