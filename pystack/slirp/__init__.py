"""The virtual gateway: a guest's traffic becomes host sockets. NAT, DHCP, DNS, published ports, policy."""
