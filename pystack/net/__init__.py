"""What stands between a link and the transports: neighbours, fragments, ICMP, UDP, paths."""
