"""What a test of a stack or a link needs: conformance checks, virtual worlds, packet scripts."""
