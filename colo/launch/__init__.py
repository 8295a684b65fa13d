"""A whole pair on this host: both machines, the proxy between them, the client's network, and what a person sees."""
