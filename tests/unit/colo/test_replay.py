"""`colo replay`: two captures compared offline."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from colo.captures import compare
from colo.cli import main
from colo.finding import Finding
from pystack.link import pcap
from pystack.link.pcap import PcapWriter
from pystack.link.pcapng import PcapngWriter
from pystack.link.records import RecordWriter
from pystack.testing.frames import Crafter, packed
from pystack.wire import tcp
from pystack.wire.packet import ACK, FIN, SYN
from tests.colo_guests import Guest, cuts

CLIENT = Crafter("10.0.0.1", "10.0.0.2")
UDP = Crafter("10.0.0.2", "10.0.0.1")
BODY = bytes(range(256)) * 20


@dataclass
class Capture:
    """A capture at a guest that serves one client, built frame by frame."""

    start: int = 10**18
    frames: list[tuple[int, bytes]] = field(default_factory=list)

    def put(self, *frames: bytes) -> Capture:
        for frame in frames:
            self.frames.append((self.start + len(self.frames) * 10**6, frame))
        return self

    def opened(self, guest: Guest, client_iss: int = 6999) -> Capture:
        """A client's handshake with ``guest``."""
        client = {"sport": guest.dport, "dport": guest.sport, "window": 1000}
        return self.put(
            CLIENT.tcp(**client, seq=client_iss, ack=0, flags=SYN),
            guest.syn_ack(),
            CLIENT.tcp(**client, seq=client_iss + 1, ack=(guest.iss + 1) & 0xFFFF_FFFF, flags=ACK),
        )

    def served(self, guest: Guest, body: bytes, segment: int = 1000) -> Capture:
        """A connection from its SYN to the guest's FIN."""
        self.opened(guest, guest.acked - 1)
        self.put(*(guest.data(at, body[at : at + segment]) for at in range(0, len(body), segment)))
        return self.put(guest.fin(len(body)))

    def write(self, path: Path) -> str:
        writer: RecordWriter = PcapngWriter.create(path) if path.suffix == ".pcapng" else PcapWriter.create(path)
        for at, frame in self.frames:
            writer.write(frame, at)
        writer.close()
        return str(path)


class Bench:
    """Runs `colo replay` on captures."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def paths(self, primary: Capture, secondary: Capture) -> tuple[str, str]:
        return primary.write(self.directory / "p.pcap"), secondary.write(self.directory / "s.pcapng")

    def run(self, primary: Capture, secondary: Capture, *options: str) -> Result:
        done = CliRunner().invoke(main, ["replay", *self.paths(primary, secondary), *options])
        assert done.stderr == ""
        return done

    def findings(self, primary: Capture, secondary: Capture) -> list[Finding]:
        return list(compare(self.paths(primary, secondary)).findings)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


# --------------------------------------------------------------------------------------------------------------- equal


def test_other_numbers_clocks_and_segments_are_no_difference(bench: Bench) -> None:
    primary = (
        Capture().served(Guest(iss=1000, tsval=1), BODY, 1448).put(UDP.udp(53, 6000, b"one"), UDP.udp(53, 6000, b"two"))
    )
    secondary = Capture(start=5 * 10**17).served(Guest(iss=0xFFFF_FF00, tsval=777), BODY, 333)
    secondary.put(UDP.udp(53, 6000, b"one"), UDP.udp(53, 6000, b"two"))
    done = bench.run(primary, secondary)
    assert done.exit_code == 0
    assert done.stdout == "Equal: 2 flows; 8 frames of the primary and 20 of the secondary.\n"


@given(data=st.data())
def test_any_order_and_any_segments_of_one_stream_are_equal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    body = random.Random(3).randbytes(600)
    both = []
    for iss in (1000, data.draw(st.integers(0, 0xFFFF_FFFF))):
        guest = Guest(iss=iss)
        segments = data.draw(cuts(len(body)))
        both.append(
            Capture()
            .opened(guest)
            .put(*(guest.data(low, body[low:high]) for low, high in segments), guest.fin(len(body)))
        )
    done = Bench(tmp_path_factory.mktemp("replay")).run(both[0], both[1])
    assert done.exit_code == 0, done.stdout


def test_a_connection_after_another_on_the_same_ports(bench: Bench) -> None:
    """Whichever side is ahead; and the numbers of the second may lie below those of the first."""
    for one, other in (((5000, 900), (70_000, 80_000)), ((5000, 9000), (80_000, 70_000))):
        primary, secondary = Capture(), Capture()
        for capture, (first, second) in ((primary, one), (secondary, other)):
            capture.served(Guest(iss=first), b"first answer" * 100)
            capture.served(Guest(iss=second, acked=9000), b"second answer" * 100)
        slow = Capture()  # the whole of the first one after the fast side's second
        slow.frames = [(at + 10**12 * (index > 0), frame) for index, (at, frame) in enumerate(secondary.frames)]
        for pair in ((primary, secondary), (primary, slow), (slow, primary)):
            done = bench.run(*pair)
            assert done.exit_code == 0, done.stdout


def test_a_connection_that_was_open_before(bench: Bench) -> None:
    done = bench.run(
        Capture().put(Guest().data(5000, b"a" * 100), Guest().data(5100, b"b" * 100)),
        Capture().put(Guest().data(5000, b"a" * 100 + b"b" * 100)),
    )
    assert done.exit_code == 0, done.stdout


def test_a_capture_from_behind_a_rewriter(bench: Bench) -> None:
    """QEMU's leaves the SYN-ACK alone and translates what follows."""
    primary = Capture().served(Guest(iss=1000), BODY)
    secondary = Capture().opened(Guest(iss=5000))
    secondary.put(*(Guest(iss=1000).data(at, BODY[at : at + 500]) for at in range(0, len(BODY), 500)))
    secondary.put(Guest(iss=1000).fin(len(BODY)))
    assert bench.run(primary, secondary, "--aligned").exit_code == 0
    assert bench.run(primary, secondary).exit_code == 1


def test_virtio_headers_in_the_files(bench: Bench) -> None:
    both = []
    for iss in (1000, 5000):
        capture = Capture().served(Guest(iss=iss), BODY)
        capture.frames = [(at, bytes(12) + frame) for at, frame in capture.frames]
        both.append(capture)
    assert bench.run(both[0], both[1], "--vnet-hdr-len", "12").exit_code == 0


def test_the_guest_that_connects_is_told_by_its_numbers(bench: Bench) -> None:
    both = []
    for iss in (1000, 5000):
        guest = Guest(iss=iss, sport=40_000, dport=80)
        answer = CLIENT.tcp(
            sport=80,
            dport=40_000,
            seq=99,
            ack=iss + 1,
            flags=SYN | ACK,
            window=1000,
            options=tcp.build_options(mss=1460),
        )
        syn = guest.segment(iss, SYN, options=tcp.build_options(mss=1460))
        both.append(Capture().put(syn, answer, guest.data(0, b"GET / HTTP/1.0\r\n\r\n"), guest.fin(18)))
    done = bench.run(both[0], both[1])
    assert done.exit_code == 0
    assert "3 frames of the primary and 3 of the secondary" in done.stdout


# ---------------------------------------------------------------------------------------------------------- differences


def test_a_byte_of_a_stream(bench: Bench) -> None:
    other = BODY[:3000] + b"!" + BODY[3001:]
    (found,) = bench.findings(
        Capture().served(Guest(iss=1000), BODY, 1000), Capture().served(Guest(iss=0xFFFF_FFF0), other, 700)
    )
    assert (found.reason, found.offset, found.incarnation, found.before) == ("payload", 3000, 1, 32)
    assert found.primary == BODY[2968:3032]
    assert found.secondary == other[2968:3032]
    assert (found.primary_record, found.secondary_record) == (3 + 3, 3 + 4)


def test_the_date_of_an_http_answer(bench: Bench) -> None:
    both = [
        Capture().served(
            Guest(iss=second * 1000),
            b"HTTP/1.1 200 OK\r\nDate: Tue, 01 Jan 2030 00:00:%02d GMT\r\nContent-Length: 5\r\n\r\nhello" % second,
        )
        for second in (1, 2)
    ]
    done = bench.run(both[0], both[1])
    assert done.exit_code == 1
    assert "the streams differ, at offset 47" in done.stdout
    assert "likely    the HTTP header Date: both answered, but not in the same second" in done.stdout
    assert done.stdout.endswith("Different: 1 of 1 flow; 3 frames of the primary and 3 of the secondary.\n")


def test_options_of_the_handshake(bench: Bench) -> None:
    (found,) = bench.findings(
        Capture().served(Guest(iss=1000, tsval=5), b"hello"), Capture().served(Guest(iss=5000), b"hello")
    )
    assert found.reason == "options"
    assert "TCP timestamp option" in found.cause
    assert (found.primary_record, found.secondary_record) == (1, 1)


def test_the_end_of_a_stream(bench: Bench) -> None:
    guest, other = Guest(iss=1000), Guest(iss=5000)
    primary = Capture().opened(guest).put(guest.data(0, b"hello"), guest.fin(5))
    secondary = Capture().opened(other).put(other.data(0, b"hello"), other.rst(5))
    (found,) = bench.findings(primary, secondary)
    assert found.reason in ("flags", "missing")
    assert b"FIN" in found.primary
    assert b"RST" in found.secondary or b"reset" in found.secondary


@pytest.mark.parametrize("shorter", [0, 1])
def test_the_rest_of_a_stream_that_one_side_lacks(bench: Bench, shorter: int) -> None:
    captures = [Capture(), Capture()]
    for side, iss in enumerate((1000, 5000)):
        guest = Guest(iss=iss)
        captures[side].opened(guest).put(guest.data(0, b"hello, "))
        if side != shorter:
            captures[side].put(guest.data(7, b"world"))
    (found,) = bench.findings(*captures)
    assert (found.reason, found.offset) == ("missing", 7)
    assert [found.primary, found.secondary][shorter] == b"7 in all"
    assert f"the {('primary', 'secondary')[shorter]} sent less" in found.cause


def test_flows_that_one_side_lacks(bench: Bench) -> None:
    full = Capture().served(Guest(iss=1000), b"hello").put(UDP.udp(1, 2, b"x"))
    findings = bench.findings(full, Capture().served(Guest(iss=5000), b"hello"))
    assert [(found.reason, found.secondary) for found in findings] == [("missing", b"no frame")]
    findings = bench.findings(Capture().served(Guest(iss=5000), b"hello"), full)
    assert [(found.reason, found.primary) for found in findings] == [("missing", b"no frame")]


def test_an_acknowledgement_that_only_the_primary_gives(bench: Bench) -> None:
    guest, other = Guest(iss=1000), Guest(iss=5000)
    (found,) = bench.findings(
        Capture().opened(guest).put(guest.ack(0, 7000 + 300)), Capture().opened(other).put(other.ack(0, 7000 + 100))
    )
    assert (found.reason, found.primary) == ("acknowledgement", b"200 bytes more")


def test_datagrams(bench: Bench) -> None:
    same = [UDP.udp(53, 6000, b"answer %d" % number) for number in range(4)]
    primary = Capture().put(*same, mine := UDP.udp(53, 6000, b"the answer is 41"))
    secondary = Capture().put(same[1], same[0], *same[2:], UDP.udp(53, 6000, b"the answer is 42"))
    (found,) = bench.findings(primary, secondary)
    assert (found.reason, found.offset) == ("datagram", 4)
    assert (found.primary_record, found.secondary_record) == (4, 4)
    assert found.primary == b"the answer is 41"
    assert found.secondary == b"the answer is 42"
    assert found.cause == "a number, such as a counter or a time"
    assert primary.frames[found.primary_record][1] == mine


def test_bytes_that_the_primary_repeats_otherwise(bench: Bench) -> None:
    guest, other = Guest(iss=1000), Guest(iss=5000)
    primary = Capture().opened(guest).put(guest.data(0, b"hello"), guest.data(0, b"HELLO"))
    secondary = Capture().opened(other).put(other.data(0, b"hello"))
    (found,) = bench.findings(primary, secondary)
    assert (found.reason, found.primary, found.secondary) == ("retransmission", b"HELLO", b"hello")


def test_one_flow_of_many(bench: Bench) -> None:
    primary, secondary = Capture(), Capture()
    for port in range(5000, 5050):
        primary.served(Guest(iss=1000, dport=port), b"answer %d" % port)
        secondary.served(Guest(iss=9000, dport=port), b"answer %d" % (port if port != 5017 else 1))
    (found,) = bench.findings(primary, secondary)
    assert found.key[10:] == (5017).to_bytes(2, "big")
    assert found.offset == 7


def test_frames_that_were_not_captured_whole_are_said_to_be_left_out(bench: Bench) -> None:
    primary = Capture().served(Guest(iss=1000), b"hello")
    primary.put(primary.frames[-1][1][:30])
    done = bench.run(primary, Capture().served(Guest(iss=5000), b"hello"))
    assert done.exit_code == 0
    assert "1 that cannot be read left out" in done.stdout


def test_a_second_address_of_the_guest(bench: Bench) -> None:
    alias = Crafter("10.0.0.3", "10.0.0.1")
    primary = Capture().put(UDP.udp(53, 6000, b"same"), alias.udp(53, 6000, b"mine"))
    secondary = Capture().put(UDP.udp(53, 6000, b"same"), alias.udp(53, 6000, b"its"))
    assert bench.run(primary, secondary, "--guest", "10.0.0.2").exit_code == 0
    assert bench.run(primary, secondary, "--guest", "10.0.0.2", "--guest", "10.0.0.3").exit_code == 1
    (found,) = compare(bench.paths(primary, secondary), [packed("10.0.0.3")]).findings
    assert packed("10.0.0.3") in found.key


def test_both_captures_in_one_file_with_comments(bench: Bench, tmp_path: Path) -> None:
    other = BODY[:3000] + b"!" + BODY[3001:]
    out = tmp_path / "out.pcapng"
    primary, secondary = Capture().served(Guest(iss=1000), BODY), Capture().served(Guest(iss=5000), other)
    bench.run(primary, secondary, "--pcapng", str(out))
    records = list(pcap.read_file(out))
    assert [record.data for record in records if record.interface == 0] == [frame for _, frame in primary.frames]
    assert [record.data for record in records if record.interface == 1] == [frame for _, frame in secondary.frames]
    commented = [record for record in records if record.comments]
    assert [record.interface for record in commented] == [0, 1]
    assert all("the streams differ, at offset 3000" in record.comments[0] for record in commented)
    assert all(BODY[3000:3001] in record.data or b"!" in record.data for record in commented)


@pytest.mark.requires("tshark")
def test_wireshark_shows_the_comments(bench: Bench, tmp_path: Path) -> None:
    out = tmp_path / "out.pcapng"
    bench.run(
        Capture().served(Guest(iss=1000), b"mine"), Capture().served(Guest(iss=5000), b"its."), "--pcapng", str(out)
    )
    command = [
        "tshark",
        "-r",
        str(out),
        "-T",
        "fields",
        "-e",
        "frame.interface_name",
        "-e",
        "tcp.len",
        "-e",
        "frame.comment",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    lines = [line.split("\t") for line in shown.splitlines()]
    assert [(name, length) for name, length, comment in lines if comment] == [("primary", "4"), ("secondary", "4")]
    assert all("the streams differ, at offset 0" in comment for _, _, comment in lines if comment)


def test_a_fin_alone_counts(bench: Bench) -> None:
    guest, other = Guest(iss=1000), Guest(iss=5000)
    (found,) = bench.findings(
        Capture().opened(guest).put(guest.data(0, b"x", ACK | FIN)), Capture().opened(other).put(other.data(0, b"x"))
    )
    assert found.reason == "missing"
    assert b"FIN" in found.primary
