"""Every fuzz target over its known inputs."""
