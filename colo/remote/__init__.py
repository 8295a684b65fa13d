"""A pair on two hosts: the proxy beside the primary, an agent beside the secondary, and a stream of records between."""
