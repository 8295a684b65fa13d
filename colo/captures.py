"""Two capture files as the input of a `colo.replay.Replay`: read, put in order, and written again with comments."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from colo.around import Around
from colo.finding import Finding
from colo.replay import Replay
from colo.report import finding_lines
from pystack import Counters, UsageError
from pystack.flow.key import directed_key
from pystack.link import pcap
from pystack.link.records import Record
from pystack.wire.packet import ACK, PROTO_TCP, RST, SYN, parse_untrusted

_LOOKED_AT: Final = 200_000  # frames of each capture, to tell who the guest is
_NAMES: Final = ("primary", "secondary")


class Captured(NamedTuple):
    """A frame of one of the two: nanoseconds since the first of its capture, whose it is, its number there."""

    since: int
    side: int
    number: int
    record: Record


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it.

    Attributes:
        paths: the captures. findings: the differences. frames: of the guest in each. flows: in both together. unread:
            frames that cannot be parsed, as when they were not captured whole.
        times: seconds since the start of its capture of each frame that a finding names, by side and number.
    """

    paths: tuple[str, str]
    vnet_hdr_len: int
    findings: Sequence[Finding]
    frames: tuple[int, int]
    flows: int
    unread: int
    times: dict[tuple[int, int], float]

    def where(self, finding: Finding) -> tuple[str, str]:
        """Which frames are concerned, as a person, and Wireshark, numbers them: from 1."""
        return self._where(0, finding.primary_record), self._where(1, finding.secondary_record)

    def _where(self, side: int, number: int) -> str:
        if number < 0:
            return ""
        return f"frame {number + 1} of {self.paths[side]}, at {self.times.get((side, number), 0.0):.6f} s"

    def summary(self) -> str:
        """The result in one line."""
        frames = f"{self.frames[0]:,} frames of the primary and {self.frames[1]:,} of the secondary"
        unread = f", {self.unread:,} that cannot be read left out" if self.unread else ""
        if not self.findings:
            return f"Equal: {_flows(self.flows)}; {frames}{unread}."
        differing = len({finding.key for finding in self.findings})
        return f"Different: {differing:,} of {_flows(self.flows)}; {frames}{unread}."


def _flows(count: int) -> str:
    return f"{count:,} flow{'s' * (count != 1)}"


def compare(
    paths: tuple[str, str], guests: Sequence[bytes] = (), *, aligned: bool = False, vnet_hdr_len: int = 0
) -> Comparison:
    """Compare two captures.

    Args:
        guests: addresses of the guest; found out when there are none.
        aligned: see `Replay`.
        vnet_hdr_len: bytes in front of every Ethernet header.

    Raises:
        UsageError: a capture cannot be read, or there is nothing of a guest in it.
    """
    found = frozenset(guests) or _guests(paths, vnet_hdr_len)
    replay = Replay(found, aligned=aligned)
    for captured in _merged(paths, vnet_hdr_len):
        replay.feed_untrusted(captured.side, captured.record.data, captured.since // 1000)
    if not any(replay.frames):
        raise UsageError("Neither capture has a frame of that guest: give another --guest ADDR.")
    findings = replay.finish()
    times: dict[tuple[int, int], float] = {}
    if findings:
        around = Around(findings, replay.bases, aligned=aligned)
        for captured in _merged(paths, vnet_hdr_len):
            around.feed_untrusted(captured.side, captured.number, captured.record.data)
        around.complete()
        wanted = _wanted(findings)
        for captured in _merged(paths, vnet_hdr_len):
            if (captured.side, captured.number) in wanted:
                times[captured.side, captured.number] = captured.since / 1e9
    return Comparison(
        paths, vnet_hdr_len, findings, (replay.frames[0], replay.frames[1]), replay.flows, replay.unread, times
    )


def _wanted(findings: Sequence[Finding]) -> dict[tuple[int, int], list[Finding]]:
    wanted: dict[tuple[int, int], list[Finding]] = {}
    for finding in findings:
        for side, number in enumerate((finding.primary_record, finding.secondary_record)):
            if number >= 0:
                wanted.setdefault((side, number), []).append(finding)
    return wanted


def write_pcapng(both: Comparison, path: Path) -> None:
    """Write the frames of both captures, each as an interface of its own, with comments where findings are.

    Raises:
        UsageError: the file cannot be created. LinkError: it cannot be written.
    """
    from pystack.link.pcapng import PcapngWriter  # noqa: PLC0415 - its library takes 15 ms

    if any(path.exists() and path.samefile(one) for one in both.paths):
        raise UsageError(f"{path} is one of the captures: give another FILE to --pcapng.")
    wanted = _wanted(both.findings)
    writer = PcapngWriter.create(path, interface=_NAMES[0], more=_NAMES[1:])
    try:
        for _, side, number, record in _merged(both.paths, both.vnet_hdr_len):
            comments = [*record.comments]
            comments += ["\n".join(finding_lines(finding)) for finding in wanted.get((side, number), ())]
            writer.write(
                record.data, record.at, direction=record.direction, comments=comments, length=record.length,
                interface=side,
            )  # fmt: skip
        writer.flush()
    finally:
        writer.close()


# -------------------------------------------------------------------------------------------------------------- reading


def _frames(paths: tuple[str, str], side: int, vnet_hdr_len: int) -> Iterator[Captured]:
    start = None
    for number, record in enumerate(pcap.read_file(paths[side])):
        if start is None:
            start = record.at
        if vnet_hdr_len:
            record = record._replace(data=record.data[vnet_hdr_len:], length=record.length - vnet_hdr_len)
        yield Captured(record.at - start, side, number, record)


def _merged(paths: tuple[str, str], vnet_hdr_len: int) -> Iterator[Captured]:
    """Both captures as if they had begun at the same instant: their clocks need not agree."""
    sides = (_frames(paths, side, vnet_hdr_len) for side in (0, 1))
    return heapq.merge(*sides, key=lambda captured: captured[:3])


def _guests(paths: tuple[str, str], vnet_hdr_len: int) -> frozenset[bytes]:
    """Who the guest is: the one whose initial sequence numbers are not the same in both, or who answers connections.

    Raises:
        UsageError: it cannot be told.
    """
    counters = Counters()
    numbers: tuple[dict[bytes, int], dict[bytes, int]] = ({}, {})
    opened: dict[bytes, bytes] = {}  # the source of a SYN or SYN-ACK by its flow
    answering: set[bytes] = set()
    sources: set[bytes] = set()
    for side in (0, 1):
        for captured in _frames(paths, side, vnet_hdr_len):
            packet = parse_untrusted(captured.record.data, 0, counters)
            if captured.number >= _LOOKED_AT:
                break
            if packet is None or not packet.version:
                continue
            sources.add(packet.src)
            if packet.proto == PROTO_TCP and packet.flags & (SYN | RST) == SYN:
                key = directed_key(packet)
                opened[key] = packet.src
                numbers[side].setdefault(key, packet.seq)
                if packet.flags & ACK:
                    answering.add(packet.src)
    differing = {opened[key] for key, seq in numbers[0].items() if numbers[1].get(key, seq) != seq}
    for candidates in (differing & answering, differing, answering, sources):
        if len(candidates) == 1 or (candidates and candidates <= differing):
            return frozenset(candidates)
    raise UsageError("Who the guest is cannot be told from the captures: give --guest ADDR.")
