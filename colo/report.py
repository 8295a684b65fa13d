"""Differences as a person reads them."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final, final

from colo.difference import Difference
from colo.finding import Finding

_BYTES: Final = frozenset({"payload", "datagram", "retransmission"})
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
    if difference.offset:  # 0 stands for the beginning, and for a difference that is of no place
        text += f", offset {difference.offset}"
    if difference.primary or difference.secondary:
        text += f": {difference.primary.decode('ascii', 'replace')}"
        if difference.secondary:
            text += f" / {difference.secondary.decode('ascii', 'replace')}"
    return text


# ------------------------------------------------------------------------------------------------------------- findings

_ROW: Final = 8

_FOUND: Final = {
    **_WORDS,
    "missing": "only one of the two has all of it",
    "acknowledgement": "the primary acknowledges what the secondary never did",
}


def finding_lines(finding: Finding, where: tuple[str, str] = ("", "")) -> list[str]:
    """A finding as a person reads it, several lines.

    Args:
        where: which frame of the primary's and of the secondary's capture is concerned; "" where none is.
    """
    lines = [f"{flow_text(finding.key)}: {_FOUND.get(finding.reason, finding.reason)}{_place(finding)}"]
    lines += [f"  {name:9} {text}" for name, text in zip(("primary", "secondary"), where, strict=True) if text]
    if finding.cause:
        lines.append(f"  likely    {finding.cause}")
    if finding.reason in _BYTES:
        start = 0 if finding.reason == "datagram" else finding.offset - finding.before
        lines += side_by_side(finding.primary, finding.secondary, start)
    else:
        both = (finding.primary.decode("ascii", "replace"), finding.secondary.decode("ascii", "replace"))
        lines += [f"  {name:9} {text}" for name, text in zip(("primary", "secondary"), both, strict=True) if text]
    return lines


def _place(finding: Finding) -> str:
    if finding.reason in ("options", "flags", "incarnation", "table_full"):
        return ""
    if finding.reason == "datagram":
        return f", after {finding.offset} equal ones"
    again = f" of connection {finding.incarnation} on these ports" if finding.incarnation > 1 else ""
    return f", at offset {finding.offset}{again}"


def side_by_side(primary: bytes, secondary: bytes, start: int = 0) -> list[str]:
    """Both sides' bytes as hexadecimal and ASCII, those that are not the same marked by ``^^`` in a line below.

    Args:
        start: the offset of the first byte, to be printed.
    """
    width = 3 * _ROW + _ROW + 2
    lines = [f"  {'':>10}  {'primary':{width}}  secondary"]
    for low in range(0, max(len(primary), len(secondary)), _ROW):
        ours, theirs = primary[low : low + _ROW], secondary[low : low + _ROW]
        lines.append(f"  {start + low:>10}  {_dump(ours):{width}}  {_dump(theirs)}".rstrip())
        if ours != theirs:
            marks = "".join(
                "   " if ours[index : index + 1] == theirs[index : index + 1] else "^^ " for index in range(_ROW)
            )
            lines.append(f"  {'':>10}  {marks:{width}}  {marks}".rstrip())
    return lines


def _dump(data: bytes) -> str:
    text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{data.hex(' '):{3 * _ROW}} {text}"


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
