"""TAP devices: the conformance test over two of them on a bridge, the kernel's segmentation against ours, bad luck."""

from __future__ import annotations

import ctypes
import os
import random
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from pystack.counters import Counters
from pystack.errors import LinkClosed, LinkError, UsageError
from pystack.link.impair import ImpairLink, Impairment
from pystack.link.segment import to_wire_untrusted
from pystack.link.tap import TapLink
from pystack.testing import conformance
from pystack.testing.conformance import Pair, check_link
from pystack.testing.frames import Crafter
from pystack.wire import checksum, ethernet, ipv6, tcp, vnet
from pystack.wire.packet import ACK, FIN, PSH, parse_untrusted, verify_untrusted

pytestmark = pytest.mark.requires("root", "netns", "tap", "ip")

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000

# A frame that a bridge floods: nobody owns the destination, and the kernel's own chatter (IPv6) is off.
_WIRE = Crafter("198.18.0.1", "198.18.0.2", src_mac=b"\x02\0\0\0\0\x0a", dst_mac=b"\x02\0\0\0\0\x0b")


def _in_new_namespace(function: Callable[[], _T]) -> _T:
    """Run ``function`` in a thread with a network namespace of its own, which lives as long as what it opens there."""

    def body() -> _T:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        return function()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(body).result(timeout=30)


def _sh(script: str) -> None:
    subprocess.run(["sh", "-ec", script], check=True, timeout=20, capture_output=True)


def _taps(*, left: bool, right: bool, mtu: int = 1500) -> tuple[TapLink, TapLink]:
    """Two TAPs on one bridge, each with offload or without."""

    def body() -> tuple[TapLink, TapLink]:
        taps = TapLink.open("left", offload=left, mtu=mtu), TapLink.open("right%d", offload=right, mtu=mtu)
        ports = "".join(f"ip link set dev {tap.name} master bridge up;" for tap in taps)
        _sh(
            "echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6;"
            f"ip link add name bridge mtu {mtu} type bridge mcast_snooping 0;" + ports + "ip link set dev bridge up"
        )
        return taps

    return _in_new_namespace(body)


@contextmanager
def tap_pair(*, left: bool = True, right: bool = True, mtu: int = 1500) -> Iterator[Pair]:
    """The TAPs, once the bridge forwards: the kernel activates a new interface's queue a little later."""
    near, far = _taps(left=left, right=right, mtu=mtu)
    with closing(near), closing(far):
        probe = conformance.frame(near, b"probe" * 10)
        for _ in range(200):
            near.send([probe], 0)
            if any(conformance.payload_of(far, data) is not None for data in _received(far, 1, patience_ms=50)):
                break
        else:
            raise AssertionError("the bridge does not forward")
        while _received(far, 64, patience_ms=20):
            pass
        yield near, far


def _received(tap: TapLink, count: int, patience_ms: int = 2000) -> list[bytes]:
    """Up to ``count`` frames, waiting for each no longer than ``patience_ms``."""
    poll = select.poll()
    poll.register(tap.fileno(), select.POLLIN)
    frames: list[bytes] = []
    while len(frames) < count and poll.poll(patience_ms):
        frames += tap.recv(0, count - len(frames))
    return frames


@pytest.mark.parametrize("right", [True, False], ids=["to-offload", "to-plain"])
@pytest.mark.parametrize("left", [True, False], ids=["offload", "plain"])
def test_tap_conforms(*, left: bool, right: bool) -> None:
    check_link(lambda: tap_pair(left=left, right=right), reports_close=False)


def test_tap_of_a_large_mtu_conforms() -> None:
    check_link(lambda: tap_pair(mtu=9000), reports_close=False)


def test_impaired_tap_conforms() -> None:
    @contextmanager
    def make() -> Iterator[Pair]:
        with tap_pair() as (left, right):
            yield ImpairLink(left, Impairment(delay=1), seed=1), right

    check_link(make, reports_close=False)


# --------------------------------------------------------------------------------------------------- large segments


def _large_segment(version: int, size: int) -> tuple[bytes, ...]:
    payload = random.Random(size).randbytes(size)
    flags = ACK | PSH | FIN
    if version == 4:
        frame = _WIRE.tcp(sport=1, dport=2, flags=flags, seq=0xFFFF_0000, ack=7, payload=payload)
        gso_type, start = vnet.GSO_TCPV4, 34
    else:
        src, dst = b"\xfd" + bytes(14) + b"\x01", b"\xfd" + bytes(14) + b"\x02"
        segment = tcp.build(src=src, dst=dst, sport=1, dport=2, flags=flags, seq=0xFFFF_0000, ack=7, payload=payload)
        ip = ipv6.build_header(src=src, dst=dst, next_header=6, payload_len=len(segment))
        frame = ethernet.build_header(_WIRE.dst_mac, _WIRE.src_mac, 0x86DD) + ip + segment
        gso_type, start = vnet.GSO_TCPV6, 54
    header = vnet.build(
        10,
        flags=vnet.F_NEEDS_CSUM,
        gso_type=gso_type,
        hdr_len=start + 20,
        gso_size=1400,
        csum_start=start,
        csum_offset=16,
    )
    frame = _undone(frame, start, 16)
    return header + frame[: start + 20], frame[start + 20 :]


def _undone(frame: bytes, start: int, offset: int) -> bytes:
    """``frame`` with the pseudo-header's sum where its checksum was: what asks the other side to complete it."""
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    total = checksum.fold(checksum.pseudo(packet.src, packet.dst, packet.proto, packet.end - packet.l4))
    at = start + offset
    return frame[:at] + total.to_bytes(2, "big") + frame[at + 2 :]


@pytest.mark.parametrize("version", [4, 6])
def test_a_large_segment_crosses_between_offloading_taps_in_one_piece(version: int) -> None:
    with tap_pair() as (near, far):
        assert isinstance(far, TapLink)
        sent = _large_segment(version, 60_000)
        assert near.send([sent], 0) == 1
        (got,) = _received(far, 1)
        header = vnet.parse_untrusted(got, 10)
        assert header is not None
        assert (header.gso_type, header.gso_size) == (vnet.GSO_TCPV4 if version == 4 else vnet.GSO_TCPV6, 1400)
        assert got[10:] == b"".join(sent)[10:]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("size", [100, 1400, 1401, 60_000])
def test_our_segmentation_is_the_kernels(version: int, size: int) -> None:
    with tap_pair(right=False) as (near, far):
        assert isinstance(far, TapLink)
        sent = _large_segment(version, size)
        assert near.send([sent], 0) == 1
        expected = to_wire_untrusted(b"".join(sent), 10, Counters())
        assert _received(far, len(expected)) == expected


def test_udp_segmentation_is_the_kernels() -> None:
    with tap_pair(right=False) as (near, far):
        assert isinstance(far, TapLink)
        frame = _WIRE.udp(1, 2, random.Random(1).randbytes(10_000))
        header = vnet.build(
            10,
            flags=vnet.F_NEEDS_CSUM,
            gso_type=vnet.GSO_UDP_L4,
            hdr_len=42,
            gso_size=1400,
            csum_start=34,
            csum_offset=6,
        )
        assert near.send([(header + _undone(frame, 34, 6),)], 0) == 1
        if not near.info.uso:  # before Linux 6.2
            assert isinstance(near, TapLink)
            assert near.counters.snapshot() == {"tap.tx_invalid": 1}
            return
        expected = to_wire_untrusted(header + frame, 10, Counters())
        assert _received(far, len(expected)) == expected


def test_a_checksum_left_undone_is_completed_on_its_way_to_a_plain_tap() -> None:
    with tap_pair(right=False) as (near, far):
        assert isinstance(far, TapLink)
        header = vnet.build(10, flags=vnet.F_NEEDS_CSUM, csum_start=34, csum_offset=6)
        frame = _WIRE.udp(1, 2, b"payload")
        near.send([(header + _undone(frame, 34, 6),)], 0)
        (got,) = _received(far, 1)
        assert got == frame
        packet = parse_untrusted(got, 0, Counters())
        assert packet is not None
        assert verify_untrusted(packet, Counters(), rx_checksum=False)


def test_recv_stops_at_its_budget_of_bytes_and_loses_nothing() -> None:
    with tap_pair() as (near, far):
        frames = [_large_segment(4, 60_000)] * 30
        assert near.send(frames, 0) == 30
        batch = far.recv(0)
        assert 5 <= len(batch) < 30
        while got := far.recv(0):
            batch += got
        assert len(batch) == 30


# ------------------------------------------------------------------------------------------------------- descriptors


def test_a_tap_received_from_another_namespace_knows_what_it_is() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def body() -> None:
            with closing(TapLink.open("sent", mtu=4000)) as tap, closing(TapLink.open("plain", offload=False)) as plain:
                socket.send_fds(theirs, [b"x"], [tap.fileno(), plain.fileno()])

        _in_new_namespace(body)
        _, fds, _, _ = socket.recv_fds(ours, 1, 2)
    with ExitStack() as stack:
        tap, plain = (stack.enter_context(closing(TapLink.from_fd(fd, mtu=4000))) for fd in fds)
        assert (tap.name, tap.info.vnet_hdr_len, tap.info.mtu, tap.info.tso4) == ("sent", 10, 4000, True)
        assert (plain.name, plain.info.vnet_hdr_len, plain.info.tso4) == ("plain", 0, False)
        assert tap.recv(0) == [], "it does not block"


@pytest.mark.parametrize("path", ["/dev/null", "/dev/net/tun"])
def test_a_descriptor_that_is_no_tap_is_one_sentence_and_is_closed(path: str) -> None:
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(UsageError, match=rf"File descriptor {fd} is not an attached TAP device"):
        TapLink.from_fd(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_the_mtu_asked_for_is_set() -> None:
    def body() -> int:
        with closing(TapLink.open("wide", mtu=65_521)) as tap:
            assert tap.info.mtu == 65_521
            return _mtu_of("wide")

    assert _in_new_namespace(body) == 65_521


def _mtu_of(name: str) -> int:
    said = subprocess.run(["ip", "-o", "link", "show", "dev", name], capture_output=True, check=True, timeout=20).stdout
    return int(said.split(b" mtu ")[1].split()[0])


# --------------------------------------------------------------------------------------------------------- bad luck


def test_frames_that_the_device_refuses_are_counted_and_their_neighbours_pass() -> None:
    with tap_pair() as (near, far):
        assert isinstance(near, TapLink)
        assert isinstance(far, TapLink)
        good = conformance.frame(near, b"good" * 20)
        nonsense = vnet.build(10, gso_type=vnet.GSO_TCPV4, gso_size=0, hdr_len=54)
        accepted = near.send([good, (b"runt",), (nonsense + _WIRE.udp(1, 2),), good], 0)
        assert accepted == 4
        assert near.counters.snapshot() == {"tap.tx_invalid": 2}
        assert len(_received(far, 2)) == 2


def test_a_frame_of_more_pieces_than_one_call_takes_arrives_whole() -> None:
    with tap_pair() as (near, far):
        assert isinstance(far, TapLink)
        (whole,) = conformance.frame(near, bytes(1400))
        pieces = tuple(bytes(whole)[n : n + 1] for n in range(len(whole)))
        assert near.send([pieces], 0) == 1
        assert [data[10:] for data in _received(far, 1)] == [bytes(whole)[10:]]


def test_an_interface_that_is_down_drops_and_counts() -> None:
    tap = _in_new_namespace(lambda: TapLink.open("down"))
    with closing(tap):
        assert tap.recv(0) == []
        assert tap.send([conformance.frame(tap, bytes(60))] * 3, 0) == 3
        assert tap.counters.snapshot() == {"tap.tx_down": 3}


def test_a_device_that_vanishes_ends_the_link() -> None:
    def body() -> TapLink:
        tap = TapLink.open("doomed")
        _sh("ip link delete dev doomed")
        return tap

    with closing(_in_new_namespace(body)) as tap:
        with pytest.raises(LinkClosed, match="doomed is gone"):
            tap.recv(0)
        with pytest.raises(LinkClosed):
            tap.send([conformance.frame(tap, bytes(60))], 0)


def test_a_name_in_use_is_one_sentence() -> None:
    def body() -> str:
        with closing(TapLink.open("mine")), pytest.raises(UsageError) as caught:
            TapLink.open("mine")
        return str(caught.value)

    assert _in_new_namespace(body) == (
        "The TAP device mine is in use by another program: choose another name, or end that one."
    )


def test_a_name_of_another_kind_of_device_is_one_sentence() -> None:
    def body() -> str:
        with pytest.raises(UsageError) as caught:
            TapLink.open("lo")
        return str(caught.value)

    assert _in_new_namespace(body) == "lo exists and is not a TAP device of this kind: choose another name."


def _without_rights(device: Path) -> str:
    """What `TapLink.open` says to a root that lacks every capability."""
    script = (
        "import sys\n"
        "from pystack.errors import UsageError\n"
        "from pystack.link.tap import TapLink\n"
        "try: TapLink.open('tap0', device=sys.argv[1])\n"
        "except UsageError as error: print(error)\n"
    )
    command = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script, str(device)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment).stdout


@pytest.mark.requires("setpriv")
def test_no_permission_in_the_namespace_is_one_sentence() -> None:
    assert _without_rights(Path("/dev/net/tun")) == (
        "No permission for the TAP device tap0: it takes CAP_NET_ADMIN in the network namespace.\n"
    )


@pytest.mark.requires("setpriv")
def test_no_permission_for_the_device_node_is_one_sentence(tmp_path: Path) -> None:
    node = tmp_path / "tun"
    os.mknod(node, 0o020000, os.makedev(10, 200))
    assert _without_rights(node) == (
        f"No permission to open {node}: run as root, or let your user read and write it.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"name": "sixteen-letters!"}, "is no interface name"),
        ({"name": "a/b"}, "is no interface name"),
        ({"name": "a b"}, "is no interface name"),
        ({"mtu": 67}, "must be between 68 and 65521 bytes, not 67"),
        ({"mtu": 65_522}, "must be between 68 and 65521 bytes, not 65522"),
        ({"device": "/nowhere/tun"}, "There is no /nowhere/tun: load the kernel's tun module"),
        ({"device": "/etc/passwd"}, "/etc/passwd is not a device node"),
        ({"device": "/dev/null"}, "/dev/null is not the tun driver's"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: dict[str, str], sentence: str) -> None:
    with pytest.raises((UsageError, LinkError), match=sentence) as caught:
        TapLink.open(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
