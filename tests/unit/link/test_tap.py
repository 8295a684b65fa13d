"""A TAP link without a device: a datagram socket reads and writes frames as one does, and kernels are imitated."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator

import pytest

from pystack.counters import Counters
from pystack.errors import LinkClosed, LinkError, UsageError
from pystack.frame import LinkInfo
from pystack.link.tap import TapLink

_FRAME = bytes(60)
_TUNSETOFFLOAD, _TUNGETIFF, _TUNGETVNETHDRSZ = 0x400454D0, 0x800454D2, 0x800454D7
_IFF_TUN, _IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 1, 2, 0x1000, 0x4000


@pytest.fixture
def ends() -> Iterator[tuple[TapLink, socket.socket]]:
    device, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    device.setblocking(False)
    link = TapLink(device, device.fileno(), "tap7", LinkInfo(), Counters())
    yield link, kernel
    link.close()
    kernel.close()


def _fails(monkeypatch: pytest.MonkeyPatch, call: str, *numbers: int) -> None:
    """Have ``os.call`` fail with each of ``numbers`` in turn, and work again after them."""
    real, left = getattr(os, call), list(numbers)

    def fake(*arguments: object) -> object:
        if left:
            raise OSError(left[0], os.strerror(left.pop(0)))
        return real(*arguments)

    monkeypatch.setattr(os, call, fake)


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOBUFS])
def test_a_full_device_accepts_fewer(
    ends: tuple[TapLink, socket.socket], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    link, kernel = ends
    _fails(monkeypatch, "writev", number)
    assert link.send([(_FRAME,)] * 2, 0) == 0
    assert link.send([(_FRAME,)] * 2, 0) == 2
    assert kernel.recv(100) == _FRAME
    assert link.counters.snapshot() == {}


@pytest.mark.parametrize(
    ("number", "counter"),
    [
        (errno.EINVAL, "tap.tx_invalid"),
        (errno.EMSGSIZE, "tap.tx_invalid"),
        (errno.EIO, "tap.tx_down"),
        (errno.ENOMEM, "tap.tx_no_memory"),
    ],
)
def test_a_frame_that_is_refused_is_counted_and_the_next_one_sent(
    ends: tuple[TapLink, socket.socket], monkeypatch: pytest.MonkeyPatch, number: int, counter: str
) -> None:
    link, kernel = ends
    _fails(monkeypatch, "writev", number)
    assert link.send([(b"refused" * 10,), (_FRAME,)], 0) == 2
    assert kernel.recv(100) == _FRAME
    assert link.counters.snapshot() == {counter: 1}


def test_a_device_that_fails_for_an_unknown_reason_is_one_sentence(
    ends: tuple[TapLink, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, _ = ends
    _fails(monkeypatch, "writev", errno.EPERM)
    with pytest.raises(LinkError, match=r"^The TAP device tap7 cannot be written: Operation not permitted\.$"):
        link.send([(_FRAME,)], 0)
    _fails(monkeypatch, "read", errno.EPERM)
    with pytest.raises(LinkError, match=r"^The TAP device tap7 cannot be read: Operation not permitted\.$"):
        link.recv(0)


def test_frames_read_before_a_failure_are_not_lost(
    ends: tuple[TapLink, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    link, kernel = ends
    kernel.send(_FRAME)
    real, calls = os.read, [0]

    def fake(fd: int, size: int) -> bytes:
        calls[0] += 1
        if calls[0] > 1:
            raise OSError(errno.EBADFD, "gone")
        return real(fd, size)

    monkeypatch.setattr(os, "read", fake)
    assert link.recv(0) == [_FRAME]
    with pytest.raises(LinkClosed):
        link.recv(0)


# ------------------------------------------------------------------------------------------- kernels of several ages


class _Kernel:
    """Answers the tun driver's requests as a kernel that knows only ``offloads``."""

    def __init__(self, *, flags: int = _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR, offloads: int = 0, header: int = 10):
        self.flags, self.offloads, self.header = flags, offloads, header

    def ioctl(self, _fd: int, request: int, argument: bytes | int = 0) -> bytes | int:
        if request == _TUNGETIFF:
            return struct.pack("16sH22x", b"tap7", self.flags)
        if request == _TUNGETVNETHDRSZ:
            return struct.pack("i", self.header)
        if request == _TUNSETOFFLOAD and isinstance(argument, int) and argument & ~self.offloads:
            raise OSError(errno.EINVAL, "unknown offload")
        return 0


def _from_fd(monkeypatch: pytest.MonkeyPatch, kernel: _Kernel) -> LinkInfo:
    monkeypatch.setattr(fcntl, "ioctl", kernel.ioctl)
    fd, other = os.pipe()
    os.close(other)
    link = TapLink.from_fd(fd, mtu=1400)
    link.close()
    return link.info


@pytest.mark.parametrize(("offloads", "uso"), [(0x67, True), (0x07, False), (0x01, False), (0x00, False)])
def test_offloads_are_agreed_as_far_as_the_kernel_knows_them(
    monkeypatch: pytest.MonkeyPatch, offloads: int, *, uso: bool
) -> None:
    info = _from_fd(monkeypatch, _Kernel(offloads=offloads))
    assert info == LinkInfo(
        mtu=1400, vnet_hdr_len=10, rx_checksum=True, tx_checksum=True, tso4=True, tso6=True, uso=uso
    )


def test_the_headers_length_is_that_of_whoever_opened_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _from_fd(monkeypatch, _Kernel(header=12)).vnet_hdr_len == 12


def test_a_header_of_an_unknown_length_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="virtio_net_hdr has 24 bytes: set it to 10 or 12"):
        _from_fd(monkeypatch, _Kernel(header=24))


def test_a_device_without_the_header_is_a_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _from_fd(monkeypatch, _Kernel(flags=_IFF_TAP | _IFF_NO_PI)) == LinkInfo(mtu=1400)


@pytest.mark.parametrize("flags", [_IFF_TUN | _IFF_NO_PI, _IFF_TAP])
def test_a_tun_device_or_packet_information_is_refused(monkeypatch: pytest.MonkeyPatch, flags: int) -> None:
    with pytest.raises(UsageError, match="is a TUN device, or has packet information: open it as a TAP"):
        _from_fd(monkeypatch, _Kernel(flags=flags))
