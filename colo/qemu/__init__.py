"""What COLO needs to talk to QEMU: its protocols, sans-I/O."""
