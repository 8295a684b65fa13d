"""TAP devices: Ethernet frames to and from the Linux kernel, with its large segments when both sides agree.

Read before editing: Documentation/networking/tuntap.rst of Linux, virtio 1.2 section 5.1.6 (the header in front).

With offload a frame is up to 64 KiB whatever the MTU and has no checksum to compute; that is where this project's
speed comes from. Measured with two TAPs on one bridge, per frame of 64 KiB: `os.read` 2.4 us, `os.writev` 4.3 us; of 66
bytes: 0.7 and 2.5 us. `os.read` beat `os.readv` into one buffer followed by a copy at every size.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self, final

import pytun

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import LinkClosed, LinkError, UsageError
from pystack.frame import LinkInfo, TxFrame
from pystack.link.allocator import keep_freed_memory

# linux/if_tun.h. Sizes are in the request numbers, the same on every architecture but MIPS, PowerPC and SPARC.
_TUNSETOFFLOAD: Final = 0x4004_54D0
_TUNGETIFF: Final = 0x8004_54D2
_TUNGETVNETHDRSZ: Final = 0x8004_54D7
_TUNSETVNETHDRSZ: Final = 0x4004_54D8
_TUNSETVNETLE: Final = 0x4004_54DC

_IFF_TUN: Final = 0x0001
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000

_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_TUN_F_TSO6: Final = 0x04
_TUN_F_USO: Final = 0x20 | 0x40  # USO4 and USO6, Linux 6.2

_IFREQ: Final = struct.Struct("16sH22x")
_INT: Final = struct.Struct("i")

_VNET_HDR_LEN: Final = 10  # without num_buffers, which TAPs do not use
_VNET_HDR_LENGTHS: Final = (10, 12)
_LARGEST_FRAME_BYTES: Final = 14 + 2 * 4 + 65_535
_RECV_BUDGET_BYTES: Final = 512 << 10  # what one `recv` brings stays in the caches until it is dealt with
_IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

_NAME: Final = re.compile(r"[!-.0-9;-~]{1,15}")  # what dev_valid_name() takes: no slash, colon or blank
_MTU_MIN, _MTU_MAX = 68, 65_521

_FULL: Final = frozenset({errno.EAGAIN, errno.ENOBUFS})
_GONE: Final = frozenset({errno.EBADFD, errno.EBADF, errno.ENODEV, errno.EFAULT})
_DROPPED: Final = {
    errno.EINVAL: "tap.tx_invalid",  # a virtio_net_hdr that contradicts the frame, or less than an Ethernet header
    errno.EMSGSIZE: "tap.tx_invalid",
    errno.E2BIG: "tap.tx_invalid",
    errno.EIO: "tap.tx_down",  # the interface is not up
    errno.ENOMEM: "tap.tx_no_memory",
}


@final
class TapLink:
    """One queue of a TAP device.

    What the device refuses because of the frame itself is dropped and counted in ``counters``: ``tap.tx_invalid``,
    ``tap.tx_down`` (the interface is down), ``tap.tx_no_memory``.

    Attributes:
        name: the interface's name at the time of opening, for messages.
        counters: what was dropped.
    """

    def __init__(self, owner: Any, fd: int, name: str, info: LinkInfo, counters: Counters) -> None:
        """Use `open` or `from_fd`. ``owner.close()`` is what closes ``fd``."""
        self._owner = owner
        self._fd = fd
        self._info = info
        self._read_bytes = info.vnet_hdr_len + _LARGEST_FRAME_BYTES
        self.name = name
        self.counters = counters
        keep_freed_memory()

    @classmethod
    def open(
        cls,
        name: str = "",
        *,
        offload: bool = True,
        mtu: int = 1500,
        device: str = "/dev/net/tun",
        counters: Counters | None = None,
    ) -> Self:
        """Create the interface ``name``, or attach to it if it exists, in the network namespace of the calling thread.

        The interface is neither brought up nor given an address. It vanishes with the link unless it was made
        persistent before.

        Args:
            name: up to 15 characters; "%d" in it is replaced by a free number; "" lets the kernel choose.
            offload: exchange large segments and leave checksums undone, as far as the kernel can. Without it a frame
                is an ordinary one of at most ``mtu`` bytes above Ethernet and carries no virtio_net_hdr.
            mtu: set on the interface where it differs, 68 to 65,521 bytes.
            device: the clone device's node.
            counters: where to count; a set of its own by default.

        Raises:
            UsageError: what was asked for cannot be had: the name, the MTU, the device node or the permission.
            LinkError: the kernel refused for another reason.
        """
        if name and not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is no interface name: give 1 to 15 characters without slash, colon or blank.")
        if not _MTU_MIN <= mtu <= _MTU_MAX:
            raise UsageError(f"A TAP's MTU must be between {_MTU_MIN} and {_MTU_MAX} bytes, not {mtu}.")
        _check_node(device)
        flags = _IFF_TAP | _IFF_NO_PI | (_IFF_VNET_HDR if offload else 0)
        try:
            tap = pytun.TunTapDevice(name, flags, device)
        except OSError as error:
            raise _explain_open(error, name, device) from None
        try:
            if tap.mtu != mtu:
                tap.mtu = mtu
            if offload:
                fcntl.ioctl(tap.fileno(), _TUNSETVNETHDRSZ, _INT.pack(_VNET_HDR_LEN))
            info = _negotiate(tap.fileno(), offload=offload, mtu=mtu)
            os.set_blocking(tap.fileno(), False)
            return cls(tap, tap.fileno(), tap.name, info, Counters() if counters is None else counters)
        except OSError as error:
            tap.close()
            raise LinkError(f"The TAP device {name or device} cannot be set up: {_why(error)}.") from None

    @classmethod
    def from_fd(cls, fd: int, *, mtu: int = 1500, counters: Counters | None = None) -> Self:
        """Take over the descriptor of a TAP that was opened elsewhere, such as in another network namespace.

        Whether it has a virtio_net_hdr, and of which length, is asked of the descriptor; the offloads are agreed again.
        The link owns ``fd`` from now on, also when this raises.

        Args:
            fd: attached to a TAP with IFF_NO_PI, usually received by SCM_RIGHTS.
            mtu: of the interface, which a descriptor does not tell.
            counters: where to count; a set of its own by default.

        Raises:
            UsageError: the descriptor is not that of a TAP without packet information.
        """
        owner = _Descriptor(fd)
        try:
            raw, flags = _IFREQ.unpack(fcntl.ioctl(fd, _TUNGETIFF, bytes(_IFREQ.size)))
            if not flags & _IFF_TAP or not flags & _IFF_NO_PI:
                raise UsageError(f"File descriptor {fd} is a TUN device, or has packet information: open it as a TAP.")
            info = _negotiate(fd, offload=bool(flags & _IFF_VNET_HDR), mtu=mtu)
            os.set_blocking(fd, False)
        except OSError as error:
            owner.close()
            raise UsageError(f"File descriptor {fd} is not an attached TAP device ({_why(error)}).") from None
        except UsageError:
            owner.close()
            raise
        name = raw.partition(b"\0")[0].decode(errors="replace")
        return cls(owner, fd, name, info, Counters() if counters is None else counters)

    @property
    def info(self) -> LinkInfo:
        """What the kernel agreed to when the device was opened."""
        return self._info

    def fileno(self) -> int:
        """The device's descriptor, -1 once closed."""
        return self._fd

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:  # noqa: ARG002  (the protocol's)
        """Up to ``limit`` frames, and about 512 KiB; see `pystack.link.base.Link.recv`."""
        fd, size, read = self._fd, self._read_bytes, os.read
        frames: list[bytes] = []
        budget = _RECV_BUDGET_BYTES
        try:
            for _ in range(limit):
                frame = read(fd, size)
                frames.append(frame)
                budget -= len(frame)
                if budget < 0:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            if not frames:
                raise self._failure(error, "read") from None
            # What was read comes first; the error meets the next call.
        return frames

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:  # noqa: ARG002  (the protocol's)
        """Write ``frames``, one system call each; see `pystack.link.base.Link.send`."""
        fd, writev = self._fd, os.writev
        sent = 0
        for frame in frames:
            try:
                writev(fd, frame)
            except OSError as error:
                if error.errno in _FULL:
                    break
                self._refused(frame, error)
            sent += 1
        return sent

    def _refused(self, frame: TxFrame, error: OSError) -> None:
        """Drop and count a frame that the device refused; join one of too many pieces for `writev` first."""
        if error.errno == errno.EINVAL and len(frame) > _IOV_MAX:
            with contextlib.suppress(OSError):
                os.write(self._fd, b"".join(frame))
                return
        reason = _DROPPED.get(error.errno or 0)
        if reason is None:
            raise self._failure(error, "written") from None
        self.counters.bump(reason)

    def _failure(self, error: OSError, what: str) -> LinkError:
        if error.errno in _GONE:
            return LinkClosed(f"The TAP device {self.name} is gone.")
        return LinkError(f"The TAP device {self.name} cannot be {what}: {_why(error)}.")

    def wants_write(self) -> bool:
        """Never: a frame is with the kernel, or was not accepted."""
        return False

    def next_timeout(self) -> Micros | None:
        """Never: the descriptor tells everything."""
        return None

    def close(self) -> None:
        """Close the device; an interface that is not persistent vanishes."""
        if self._fd >= 0:
            self._fd = -1
            self._owner.close()


@final
class _Descriptor:
    """Closes a plain descriptor as pytun's object closes its own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _negotiate(fd: int, *, offload: bool, mtu: int) -> LinkInfo:
    """Agree with the kernel on what may be left to the other side, as much as it offers."""
    if not offload:
        return LinkInfo(mtu=mtu)
    (header,) = _INT.unpack(fcntl.ioctl(fd, _TUNGETVNETHDRSZ, _INT.pack(0)))
    if header not in _VNET_HDR_LENGTHS:
        raise UsageError(f"The TAP's virtio_net_hdr has {header} bytes: set it to 10 or 12 (TUNSETVNETHDRSZ).")
    with contextlib.suppress(OSError):  # a machine of little-endian order has no other
        fcntl.ioctl(fd, _TUNSETVNETLE, _INT.pack(1))
    wanted = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6
    for features in (wanted | _TUN_F_USO, wanted, _TUN_F_CSUM, 0):
        try:
            fcntl.ioctl(fd, _TUNSETOFFLOAD, features)
        except OSError:
            continue
        break
    else:
        features = 0
    # What is set above is what the kernel may hand us. It takes any such frame from us since it has virtio_net_hdr,
    # except that one with a UDP segment size is understood only where USO can be set.
    return LinkInfo(
        mtu=mtu,
        vnet_hdr_len=header,
        rx_checksum=True,
        tx_checksum=True,
        tso4=True,
        tso6=True,
        uso=bool(features & _TUN_F_USO),
    )


def _check_node(device: str) -> None:
    """Tell apart, before the open, what it would answer with one errno."""
    try:
        mode = Path(device).stat().st_mode
    except FileNotFoundError:
        raise UsageError(
            f"There is no {device}: load the kernel's tun module (modprobe tun), or pass the device into the container."
        ) from None
    except OSError as error:
        raise UsageError(f"{device} cannot be looked at: {_why(error)}.") from None
    if not stat.S_ISCHR(mode):
        raise UsageError(f"{device} is not a device node: name the tun driver's, usually /dev/net/tun.")
    if not os.access(device, os.R_OK | os.W_OK):
        raise UsageError(f"No permission to open {device}: run as root, or let your user read and write it.")


def _explain_open(error: OSError, name: str, device: str) -> UsageError | LinkError:
    """The sentence for a person, from what open(2) or TUNSETIFF answered."""
    match error.errno:
        case errno.EPERM | errno.EACCES:
            return UsageError(
                f"No permission for the TAP device {name or 'here'}: it takes CAP_NET_ADMIN in the network namespace."
            )
        case errno.EBUSY:
            return UsageError(
                f"The TAP device {name} is in use by another program: choose another name, or end that one."
            )
        case errno.EINVAL | errno.EEXIST:
            return UsageError(f"{name or device} exists and is not a TAP device of this kind: choose another name.")
        case errno.ENOTTY:
            return UsageError(f"{device} is not the tun driver's: name its device node, usually /dev/net/tun.")
        case errno.ENODEV | errno.ENXIO:
            return UsageError(f"{device} has no driver behind it: load the kernel's tun module (modprobe tun).")
        case _:
            return LinkError(f"The TAP device {name or device} cannot be opened: {_why(error)}.")


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
