"""The short cut that a segment of a known connection takes through the stack changes nothing but the time it takes."""

from __future__ import annotations

from ipaddress import IPv4Interface

from hypothesis import given
from hypothesis import strategies as st

from pystack.frame import LinkInfo
from pystack.stack import Stack, StackConfig
from pystack.testing.frames import Crafter
from pystack.wire import vlan
from pystack.wire.packet import ACK, SYN, parse_untrusted

WIRE = Crafter("10.0.0.9", "10.0.0.1")

SEGMENTS = st.lists(
    st.fixed_dictionaries(
        {
            "flags": st.sampled_from([0x10, 0x10, 0x10, 0x18, 0x11, 0x14, 0x12, 0x04, 0x30, 0x00]),
            "seq": st.integers(-50, 3000),
            "ack": st.integers(-50, 3000),
            "window": st.integers(0, 65_535),
            "payload": st.binary(max_size=600),
            "options": st.sampled_from([b"", b"", b"\1\1\1\1", b"\2\0\0\0"]),
            "damage": st.sampled_from([-1, -1, -1, -1, 20, 40, 50]),
        }
    ),
    max_size=12,
)


class Twin:
    """A stack with an open connection that has something to send; ``tagged`` frames take the long way."""

    def __init__(self, *, tagged: bool) -> None:
        self.tagged = tagged
        config = StackConfig(mac=b"\2\0\0\0\0\1", addresses=(IPv4Interface("10.0.0.1/24"),))
        self.stack = Stack(config, LinkInfo(), seed=5)
        listener = self.stack.listen(80)
        self.feed(WIRE.arp_request(), 0)
        (answer,) = self.feed(WIRE.tcp(sport=9, dport=80, flags=SYN, seq=99), 0)
        packet = parse_untrusted(answer, 0, self.stack.counters)
        assert packet is not None
        self.peer = packet.seq + 1
        self.feed(WIRE.tcp(sport=9, dport=80, flags=ACK, seq=100, ack=self.peer), 0)
        connection = listener.take()
        assert connection is not None
        self.connection = connection
        self.connection.write(bytes(3000))

    def feed(self, frame: bytes, now: int) -> list[bytes]:
        """Receive, and return what is sent then."""
        self.stack.receive(vlan.push(frame, 0) if self.tagged else frame, now)
        return [b"".join(sent) for sent in self.stack.frames(now)]


@given(SEGMENTS)
def test_the_short_way_and_the_long_way_lead_to_the_same_place(segments: list[dict[str, int | bytes]]) -> None:
    short, long = Twin(tagged=False), Twin(tagged=True)
    for now, fields in enumerate(segments, start=1):
        values = dict(fields)
        damage = values.pop("damage")
        values["seq"] = (100 + int(values["seq"])) & 0xFFFF_FFFF
        values["ack"] = (short.peer + int(values["ack"])) & 0xFFFF_FFFF
        frame = bytearray(WIRE.tcp(sport=9, dport=80, **values))
        if isinstance(damage, int) and 0 <= damage < len(frame):
            frame[damage] ^= 0x20
        assert short.feed(bytes(frame), now * 1000) == long.feed(bytes(frame), now * 1000)
        assert short.stack.counters.snapshot() == long.stack.counters.snapshot()
        assert short.stack.next_timeout() == long.stack.next_timeout()
    assert short.connection.read(1 << 20) == long.connection.read(1 << 20)
    assert short.connection.state == long.connection.state
