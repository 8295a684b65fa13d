"""Links of a pair on two hosts: the client's, as a person names it, and the secondary's, which is a session's."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, final

from colo.address import Address
from pystack import Counters, Link, LinkInfo, Micros, QemuLink, TapLink, TxFrame, UsageError

_MAX_FRAMES: Final = 65_536
_INFO: Final = LinkInfo(mtu=1500)
_TAP: Final = "tap:"


def check_client(text: str) -> None:
    """See that ``text`` is a client's link.

    Raises:
        UsageError: it is not.
    """
    if not text.startswith(_TAP) or text == _TAP:
        try:
            Address.parse(text)
        except UsageError:
            raise UsageError(
                f"--client: {text!r} is no network: write tap:NAME, or unix:PATH with ,server behind it to listen."
            ) from None


def open_client(text: str, counters: Counters) -> Link:
    """The client's network: ``tap:NAME``, or a stream socket with QEMU's framing.

    Raises:
        UsageError: it cannot be had.
    """
    check_client(text)
    if text.startswith(_TAP):
        return TapLink.open(text.removeprefix(_TAP), offload=False, counters=counters)
    address = Address.parse(text)
    opened = QemuLink.listen if address.server else QemuLink.connect
    return opened(address.where, info=_INFO, counters=counters)


def open_machine(address: Address, counters: Counters) -> QemuLink:
    """Where a machine's ``-netdev stream,server=off`` connects to.

    Raises:
        UsageError: the address cannot be had.
    """
    return QemuLink.listen(address.where, info=_INFO, counters=counters)


@final
class RemoteLink:
    """The secondary's link as the proxy sees it: frames that came in a session, and frames that go into it.

    Its descriptor never becomes ready: whoever feeds it has the driver take a turn.
    """

    def __init__(self, say: Callable[[bytes], None], counters: Counters) -> None:
        self._say = say
        self._counters = counters
        self._frames: deque[bytes] = deque()
        self._before: int | None = None  # how many of them belong before the boundary
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def info(self) -> LinkInfo:
        """As of any guest."""
        return _INFO

    def fileno(self) -> int:
        """See the class; -1 once closed."""
        return self._fd

    def feed(self, frame: bytes) -> None:
        """A frame has come."""
        if len(self._frames) < _MAX_FRAMES:
            self._frames.append(frame)
        else:
            self._counters.bump("remote.dropped")

    def bound(self) -> None:
        """What has come so far belongs before the boundary of the checkpoint under way."""
        self._before = len(self._frames)

    def mark(self) -> None:
        """The agent has drawn the line; `bound` tells where."""

    def recv_to_mark(self, *, drop_cut: bool) -> list[bytes]:  # noqa: ARG002 - the agent has dropped it
        """What belongs before the boundary; everything if there was none."""
        count = len(self._frames) if self._before is None else self._before
        self._before = None
        return [self._frames.popleft() for _ in range(count)]

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:  # noqa: ARG002 - the protocol's form
        """Up to ``limit`` frames."""
        return [self._frames.popleft() for _ in range(min(limit, len(self._frames)))]

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:  # noqa: ARG002 - as above
        """All of them; the session drops what it has no room for."""
        for frame in frames:
            self._say(b"".join(frame))
        return len(frames)

    def wants_write(self) -> bool:
        """Never."""
        return False

    def next_timeout(self) -> Micros | None:
        """At once while there are frames."""
        return 0 if self._frames else None

    def close(self) -> None:
        """Give the descriptor back; may be repeated."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
