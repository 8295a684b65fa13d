"""What touches the operating system on behalf of a node: the asyncio loop, host sockets, namespaces."""
