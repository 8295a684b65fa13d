"""A link that writes what passes to a capture file, for Wireshark."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final, final

from pystack.clock import Micros
from pystack.counters import Counters
from pystack.errors import LinkError
from pystack.frame import LinkInfo, TxFrame
from pystack.link.base import Link
from pystack.link.records import INBOUND, OUTBOUND, RecordWriter
from pystack.link.segment import complete_untrusted

_NANOSECONDS: Final = 1000


def origin_of(now: Micros) -> Micros:
    """What to add to an instant of a clock that shows ``now``, to have microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000 - now


@final
class CaptureLink:
    """``inner``, with every frame of both directions written to ``writer``.

    Written is what a program behind the link would see: without virtio_net_hdr, a large segment in one piece, and a
    checksum that was left undone completed, so that Wireshark does not complain. The file can be read while it grows.

    A file that cannot be written any more (a full disk) ends the capture and not the network.

    Args:
        inner: the link to wrap; closed with this one, as is ``writer``.
        origin: added to ``now`` for the file's time, see `origin_of`; 0 keeps virtual time as it is.
        complete_checksums: leave it out where the time it takes (100 us for 64 KiB) matters more.
        counters: where to count ``capture.frames``, and ``capture.failed`` once; a set of its own by default.

    Attributes:
        failure: the sentence that says why the capture ended early, "" while it runs.
    """

    def __init__(
        self,
        inner: Link,
        writer: RecordWriter,
        *,
        origin: Micros = 0,
        complete_checksums: bool = True,
        counters: Counters | None = None,
    ) -> None:
        self._inner = inner
        self._writer = writer
        self._origin = origin
        self._complete = complete_checksums
        self.counters = Counters() if counters is None else counters
        self.failure = ""

    @property
    def info(self) -> LinkInfo:
        """What the inner link declares."""
        return self._inner.info

    def fileno(self) -> int:
        """The inner link's."""
        return self._inner.fileno()

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        """What the inner link received; see `pystack.link.base.Link.recv`."""
        frames = self._inner.recv(now, limit)
        if frames:
            self._record(frames, now, INBOUND)
        return frames

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        """Send through the inner link, and record what it accepted; see `pystack.link.base.Link.send`."""
        accepted = self._inner.send(frames, now)
        if accepted:
            self._record((b"".join(frame) for frame in frames[:accepted]), now, OUTBOUND)
        return accepted

    def _record(self, frames: Iterable[bytes], now: Micros, direction: int) -> None:
        if self.failure:
            return
        header = self._inner.info.vnet_hdr_len
        at = (self._origin + now) * _NANOSECONDS
        written = 0
        try:
            for frame in frames:
                data = complete_untrusted(frame, header) if self._complete else memoryview(frame)[header:]
                self._writer.write(data, at, direction=direction)
                written += 1
            self._writer.flush()
        except LinkError as error:
            self.failure = str(error)
            self.counters.bump("capture.failed")
        self.counters.bump("capture.frames", written)

    def wants_write(self) -> bool:
        """Whether the inner link does."""
        return self._inner.wants_write()

    def next_timeout(self) -> Micros | None:
        """The inner link's."""
        return self._inner.next_timeout()

    def close(self) -> None:
        """Close the inner link and the file."""
        self._inner.close()
        self._writer.close()
