"""`colo mirror` and `colo rewrite` on real sockets."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from pystack import Counters
from pystack.testing.frames import Crafter
from pystack.wire.packet import ACK, PSH, SYN, Packet, parse_untrusted, verify_untrusted
from tests.colo_guests import Guest
from tests.interop.colo_sockets import Command, End, counters, running

UDP = Crafter("10.0.0.1", "10.0.0.2")
CLIENT = Crafter("10.0.0.1", "10.0.0.2")


@contextlib.contextmanager
def serving(
    directory: Path, command: str, *names: str, vnet_hdr_len: int | None = None
) -> Iterator[tuple[Command, dict[str, End]]]:
    """A command that listens at a UNIX socket for each option of ``names``, and an end for each."""
    arguments = [command, "--stats", *(["--vnet-hdr"] if vnet_hdr_len is not None else [])]
    for number, name in enumerate(names):
        arguments += [f"--{name}", f"unix:{directory / f'{name}{number}'},server"]
    with running(*arguments) as process, contextlib.ExitStack() as undo:
        ends = {}
        for number, name in enumerate(names):
            ends[f"{name}{number}"] = end = End(
                directory / f"{name}{number}", vnet_hdr_len=None if name == "control" else vnet_hdr_len
            )
            undo.callback(end.close)
        yield process, ends


def parsed(frame: bytes, vnet_hdr_len: int = 0) -> Packet:
    packet = parse_untrusted(frame, vnet_hdr_len, Counters())
    assert packet is not None
    assert verify_untrusted(packet, Counters(), rx_checksum=False)
    return packet


# ------------------------------------------------------------------------------------------------------------- mirror


@pytest.mark.parametrize("vnet_hdr_len", [None, 12])
def test_frames_and_their_copies_arrive_as_they_are(tmp_path: Path, vnet_hdr_len: int | None) -> None:
    frames = [os.urandom(1 + number * 7 % 3000) for number in range(vnet_hdr_len or 1, 500)]
    frames = [frame if len(frame) >= 12 else frame + bytes(12) for frame in frames]
    with serving(tmp_path, "mirror", "in", "out", "copy", "copy", vnet_hdr_len=vnet_hdr_len) as (command, ends):
        ends["in0"].send(*frames)
        for name in ("out1", "copy2", "copy3"):
            assert ends[name].receive(len(frames)) == frames
        said = counters(command.stop())
    assert said["mirror.frames"] == len(frames)


def test_who_is_not_there_misses_copies_and_keeps_nobody_waiting(tmp_path: Path) -> None:
    with serving(tmp_path, "mirror", "in", "out", "copy") as (command, ends):
        ends["copy2"].close()
        ends["in0"].send(b"first" * 20)
        assert ends["out1"].receive() == [b"first" * 20]
        ends["in0"].send(b"second" * 20, b"third" * 20)
        assert ends["out1"].receive(2) == [b"second" * 20, b"third" * 20]
        again = End(tmp_path / "copy2")
        try:
            ends["in0"].send(b"fourth" * 20)
            assert ends["out1"].receive() == [b"fourth" * 20]
            assert again.receive() == [b"fourth" * 20]
        finally:
            again.close()
        said = counters(command.stop())
    assert 2 <= said["channel.copy1.dropped"] <= 3


def test_half_a_frame_does_not_reach_the_next_reader(tmp_path: Path) -> None:
    with serving(tmp_path, "mirror", "in", "out") as (command, ends):
        ends["in0"].sock.sendall(struct.pack("!I", 100) + bytes(50))
        ends["in0"].close()
        again = End(tmp_path / "in0")
        try:
            again.send(b"", b"whole" * 20)
            assert ends["out1"].receive() == [b"whole" * 20]
            again.sock.sendall(struct.pack("!I", 70_000))
            assert again.is_closed()
        finally:
            again.close()
        said = counters(command.stop())
    assert said["mirror.too_long"] == said["mirror.empty"] == 1


# ------------------------------------------------------------------------------------------------------------ rewrite

INPUTS = ("in-client", "out-guest", "in-guest", "out-client")


@pytest.mark.parametrize("vnet_hdr_len", [None, 10, 12])
def test_a_connection_is_translated_both_ways(tmp_path: Path, vnet_hdr_len: int | None) -> None:
    header = vnet_hdr_len or 0
    client = CLIENT.but(vnet_hdr_len=header)
    guest = Guest(iss=90_000, tsval=5_000, vnet_hdr_len=header)
    with serving(tmp_path, "rewrite", *INPUTS, vnet_hdr_len=vnet_hdr_len) as (command, ends):
        to_guest, at_guest, from_guest, at_client = ends.values()
        to_guest.send(client.tcp(sport=5000, dport=80, seq=6999, ack=0, flags=SYN, window=1000))
        at_guest.receive()
        from_guest.send(guest.syn_ack())
        at_client.receive()
        # The primary's initial number is 1000, as the client's acknowledgement says.
        to_guest.send(client.tcp(sport=5000, dport=80, seq=7000, ack=1001, flags=ACK, window=1000))
        assert parsed(at_guest.receive()[0], header).ack == 90_001
        from_guest.send(guest.data(0, b"hello"))
        got = parsed(at_client.receive()[0], header)
        assert (got.seq, got.payload_bytes()) == (1001, b"hello")
        to_guest.send(client.tcp(sport=5000, dport=80, seq=7000, ack=1006, flags=ACK, window=1000, payload=b"more"))
        assert parsed(at_guest.receive()[0], header).ack == 90_006
        said = counters(command.stop())
    assert said["rewriter.learnt"] == 1


def test_with_the_primarys_frames_an_early_acknowledgement_waits(tmp_path: Path) -> None:
    """Where QEMU's rewriter spoils the connection: the client's ACK comes before the secondary's SYN-ACK."""
    primary, guest = Guest(iss=1000), Guest(iss=90_000)
    with serving(tmp_path, "rewrite", *INPUTS, "in-primary") as (_, ends):
        to_guest, at_guest, from_guest, at_client, from_primary = ends.values()
        from_primary.send(primary.syn_ack())
        to_guest.send(CLIENT.tcp(sport=5000, dport=80, seq=6999, ack=0, flags=SYN, window=1000))
        at_guest.receive()
        to_guest.send(CLIENT.tcp(sport=5000, dport=80, seq=7000, ack=1001, flags=ACK, window=1000))
        assert at_guest.silent()
        from_guest.send(guest.syn_ack())
        assert parsed(at_client.receive()[0]).seq == 1000
        assert parsed(at_guest.receive()[0]).ack == 90_001


def test_control_says_when_there_was_a_checkpoint(tmp_path: Path) -> None:
    primary, guest = Guest(iss=1000), Guest(iss=90_000)
    with serving(tmp_path, "rewrite", *INPUTS, "in-primary", "control") as (command, ends):
        to_guest, at_guest, from_guest, at_client, from_primary, control = ends.values()
        from_primary.send(primary.syn_ack())
        to_guest.send(CLIENT.tcp(sport=5000, dport=80, seq=6999, ack=0, flags=SYN, window=1000))
        at_guest.receive()
        from_guest.send(guest.syn_ack())
        at_client.receive()
        to_guest.send(CLIENT.tcp(sport=5000, dport=80, seq=7000, ack=1001, flags=ACK, window=1000))
        at_guest.receive()
        from_guest.send(guest.data(0, b"before"))
        control.sock.sendall(b"checkpoint\n")
        assert control.sock.recv(100) == b"ok\n"
        from_guest.send(primary.data(6, b"after"))
        assert [parsed(frame).seq for frame in at_client.receive(2)] == [1001, 1007]
        control.sock.sendall(b"nonsense\nfailover\n")
        with control.sock.makefile("rb") as answers:
            assert answers.readline() == b"error: say checkpoint or failover\n"
            assert answers.readline() == b"ok\n"
        control.sock.sendall(b"x" * 300)
        assert control.is_closed()
        said = counters(command.stop())
    assert said["rewriter.checkpoints"] == said["rewrite.unknown_word"] == 1


def test_what_is_no_packet_passes_as_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, "rewrite", *INPUTS) as (command, ends):
        to_guest, at_guest, from_guest, at_client = ends.values()
        for source, sink in ((to_guest, at_guest), (from_guest, at_client)):
            odd = [b"x", bytes(13), UDP.ipv4(6, b"short"), UDP.arp_request(), UDP.udp(1, 2, b"datagram"), bytes(60_000)]
            source.send(*odd)
            assert sink.receive(len(odd)) == odd
            source.send(b"")
            source.sock.sendall(b"\xff\xff\xff\xff")
            assert source.is_closed()
        said = counters(command.stop())
    assert said["rewrite.in_client.too_long"] == said["rewrite.in_guest.too_long"] == 1
    assert said["rewrite.in_client.empty"] == said["rewrite.in_guest.empty"] == 1


def test_flags_that_open_nothing_leave_numbers_alone(tmp_path: Path) -> None:
    """A connection that was open before: the secondary is a copy, and its numbers are right."""
    guest = Guest(iss=1000)
    with serving(tmp_path, "rewrite", *INPUTS) as (_, ends):
        _, _, from_guest, at_client = ends.values()
        frame = guest.data(100, b"middle", flags=ACK | PSH)
        from_guest.send(frame)
        assert at_client.receive() == [frame]
