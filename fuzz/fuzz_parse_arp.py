"""ARP and VLAN tags are read within their bytes or refused with one counter, and survive being built again."""

from __future__ import annotations

from fuzz import harness, seeds
from pystack.counters import Counters
from pystack.wire import arp, vlan
from pystack.wire.packet import ETHERTYPE_ARP

SEEDS = seeds.parts(lambda packet: packet.frame if packet.tags or packet.ethertype == ETHERTYPE_ARP else None)
MAX_LEN = 80


def target(data: bytes) -> None:
    """Read the tags of the frame ``data``, and what is behind them as ARP."""
    tags = vlan.read_tags_untrusted(data)
    assert 12 + 4 * len(tags) <= max(12, len(data))
    bare = data
    for _ in tags:
        bare = vlan.pop(bare)
    for tag in reversed(tags):
        bare = vlan.push(bare, tag.vid, pcp=tag.pcp, dei=tag.dei, tpid=tag.tpid)
    assert bare == data
    start = 14 + 4 * len(tags)
    counters = Counters()
    message = arp.parse_untrusted(data, start, len(data), counters)
    assert sum(counters.snapshot().values()) == (message is None)
    if message:
        built = arp.build(message.op, sha=message.sha, spa=message.spa, tha=message.tha, tpa=message.tpa)
        assert built == data[start : start + len(built)]


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack"], seeds=SEEDS)
