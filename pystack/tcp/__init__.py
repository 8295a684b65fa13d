"""Being an end of TCP connections (RFC 9293)."""
