"""The edge where frames come in and go out: devices, sockets, files, and links that wrap links."""
