"""How to put a packet on the wire towards one destination: the addresses of two layers, and the MTU."""

from __future__ import annotations

from typing import Final, final

from pystack.frame import LinkInfo

DEFAULT_TTL: Final = 64


@final
class Path:
    """The way from ``src`` to ``dst`` over one link. Owned by one connection or endpoint.

    Attributes:
        link: what the link can do.
        src_mac, dst_mac: Ethernet addresses, 6 bytes; ``dst_mac`` is None until the neighbour is resolved.
        src, dst: IP addresses, both of 4 or both of 16 bytes.
        mtu: bytes of the largest IP packet on this path; starts as the link's, lowered by path MTU discovery.
        ttl, tos: for the IP header.
        in_use: cleared when its owner is done with it, though somebody may still hold the owner.
    """

    __slots__ = ("__weakref__", "dst", "dst_mac", "in_use", "link", "mtu", "src", "src_mac", "tos", "ttl")

    def __init__(
        self,
        link: LinkInfo,
        src_mac: bytes,
        dst_mac: bytes | None,
        src: bytes,
        dst: bytes,
        *,
        ttl: int = DEFAULT_TTL,
        tos: int = 0,
    ) -> None:
        self.link = link
        self.src_mac = src_mac
        self.dst_mac = dst_mac
        self.src = src
        self.dst = dst
        self.mtu = link.mtu
        self.in_use = True
        self.ttl = ttl
        self.tos = tos

    @property
    def ready(self) -> bool:
        """Whether a packet can be sent now: the neighbour's address is known."""
        return self.dst_mac is not None

    @property
    def version(self) -> int:
        """The IP version, 4 or 6."""
        return 4 if len(self.dst) == 4 else 6
