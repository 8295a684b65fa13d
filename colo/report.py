"""Differences as a person reads them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, final

from colo.difference import Difference

_PER_SECOND: Final = 10

_WORDS: Final = {
    "payload": "the streams differ",
    "options": "the SYNs negotiate different options",
    "flags": "one side ends the stream and the other does not",
    "datagram": "the datagrams differ",
    "retransmission": "the primary repeats other bytes than it had sent",
    "incarnation": "the primary reuses the ports of a connection that is still held",
    "timeout": "the primary waits in vain",
    "queue_full": "too many frames of the primary are held",
    "secondary_queue_full": "the secondary is too far ahead",
    "table_full": "there are more flows than can be tracked",
}


def flow_text(key: bytes) -> str:
    """A flow's key (`pystack.flow.key.directed_key`) as a person writes it."""
    if len(key) == 12:
        return f"TCP {_ends(key[:4], key[4:8], key[8:12])}"
    if len(key) < 3:
        return "no flow in particular"
    proto, version, tags = key[0], key[1], key[2]
    size = 4 if version == 4 else 16
    rest = key[3 + tags :]
    if version not in (4, 6) or len(rest) < 2 * size:
        return key.decode("ascii", "replace")
    name = {1: "ICMP", 6: "TCP", 17: "UDP", 58: "ICMPv6"}.get(proto, f"protocol {proto}")
    vlan = f" in VLAN {int.from_bytes(key[5:7], 'big') & 0xFFF}" if tags >= 4 else ""
    ports = rest[2 * size :] if proto in (6, 17) else b""
    return f"{name}{vlan} {_ends(rest[:size], rest[size : 2 * size], ports)}"


def _ends(src: bytes, dst: bytes, ports: bytes) -> str:
    family = socket.AF_INET if len(src) == 4 else socket.AF_INET6
    one, other = socket.inet_ntop(family, src), socket.inet_ntop(family, dst)
    if len(ports) != 4:
        return f"{one} > {other}"
    if family == socket.AF_INET6:
        one, other = f"[{one}]", f"[{other}]"
    return f"{one}:{int.from_bytes(ports[:2], 'big')} > {other}:{int.from_bytes(ports[2:], 'big')}"


def line(difference: Difference) -> str:
    """One line for a log."""
    text = f"{_WORDS.get(difference.reason, difference.reason)}: {flow_text(difference.key)}"
    if difference.reason in ("payload", "datagram", "retransmission"):
        at = difference.before
        return (
            f"{text}, offset {difference.offset}: primary {difference.primary[at : at + 16]!r},"
            f" secondary {difference.secondary[at : at + 16]!r}"
        )
    if difference.primary or difference.secondary:
        text += f": {difference.primary.decode('ascii', 'replace')}"
        if difference.secondary:
            text += f" / {difference.secondary.decode('ascii', 'replace')}"
    return text


@final
class Teller:
    """Says each difference in one line, and of many in a second only how many there were more."""

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._say = say
        self._clock = clock
        self._second = -1
        self._said = 0

    def tell(self, difference: Difference) -> None:
        """Say it, or count it."""
        second = int(self._clock())
        if second != self._second:
            if self._said > _PER_SECOND:
                self._say(f"and {self._said - _PER_SECOND} more differences in that second")
            self._second, self._said = second, 0
        self._said += 1
        if self._said <= _PER_SECOND:
            self._say(line(difference))
