"""Pairs of links for the conformance checks, one context manager for each way of joining two."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

from pystack.frame import LinkInfo
from pystack.link import memory
from pystack.link.base import Link
from pystack.link.impair import ImpairLink, Impairment
from pystack.link.memory import ETHERNET
from pystack.link.qemu import QemuLink
from pystack.link.sockets import Address
from pystack.testing.conformance import MakePair, Pair

OFFLOADED = LinkInfo(vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True, tso6=True, uso=True)


@contextmanager
def both(left: Link, right: Link) -> Iterator[Pair]:
    """The pair, closed at the end."""
    with closing(left), closing(right):
        yield left, right


def memory_pair(info: LinkInfo = ETHERNET, *, wakeup: bool = False, queue_frames: int = 1000) -> MakePair:
    return lambda: both(*memory.pair(info, wakeup=wakeup, queue_frames=queue_frames))


@contextmanager
def qemu_pair(
    address: Address | None = None, *, info: LinkInfo = ETHERNET, server_left: bool = False
) -> Iterator[Pair]:
    """A server and its client, joined: over a UNIX socket unless ``address`` is a TCP one."""
    with ExitStack() as stack:
        if address is None:
            address = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "qemu.sock"
        server = stack.enter_context(closing(QemuLink.listen(address, info=info)))
        client = stack.enter_context(closing(QemuLink.connect(server.address, info=info)))
        assert server.recv(0) == []  # accepts
        assert server.connected
        yield (server, client) if server_left else (client, server)


def impaired_pair(impairment: Impairment, info: LinkInfo = ETHERNET, *, wakeup: bool = False) -> MakePair:
    """A pair in memory whose left link is impaired in both directions."""

    def make() -> AbstractContextManager[Pair]:
        left, right = memory.pair(info, wakeup=wakeup)
        return both(ImpairLink(left, impairment, seed=1), right)

    return make
