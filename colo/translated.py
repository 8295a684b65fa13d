"""The clients' link of a pair whose primary was a secondary before: connections of that time go on in the old numbers.

After a failover the survivor's own numbers are not those that its clients know, and the proxy that carried them over
translates for as long as such a connection lives. When another secondary joins, it becomes a copy of the survivor and
has the survivor's numbers. So there is a new proxy between the two, and the old one stays where it was, between it and
the clients::

    clients -- link -- [old proxy: translates] -- [new proxy: mirrors, compares] --+-- survivor
                                                                                   +-- new secondary
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from colo.proxy import Proxy, Role
from pystack import Link, LinkInfo, Micros, TxFrame

_PAST: Final[Micros] = 0
_MAX_UNSENT: Final = 8192


@final
class TranslatedLink:
    """``link`` as the survivor of ``proxy`` sees it. The proxy is driven by this link from now on, and by nobody else.

    Closing it closes ``link``. What finds no room is dropped beyond `_MAX_UNSENT` frames, as a network may, and counted
    as ``proxy.link_full``.
    """

    def __init__(self, link: Link, proxy: Proxy) -> None:
        assert proxy.role is Role.SECONDARY_ALONE
        self._link = link
        self._proxy = proxy
        self._unsent: list[TxFrame] = []

    @property
    def info(self) -> LinkInfo:
        """That of the link."""
        return self._link.info

    def fileno(self) -> int:
        """That of the link."""
        return self._link.fileno()

    def recv(self, now: Micros, limit: int = 64) -> list[bytes]:
        """What clients have sent, in the survivor's numbers; see `pystack.link.base.Link.recv`."""
        proxy = self._proxy
        for frame in self._link.recv(now, limit):
            proxy.from_client(frame, now)
        due = proxy.next_timeout()
        if due is not None and due <= now:
            proxy.tick(now)
        return proxy.to_secondary()

    def send(self, frames: Sequence[TxFrame], now: Micros) -> int:
        """Send what the survivor has to say, in the numbers that its clients know. All are accepted."""
        proxy = self._proxy
        for frame in frames:
            proxy.from_secondary(bytes(frame[0]) if len(frame) == 1 else b"".join(frame), now)
        self._unsent += zip(proxy.to_client())  # each a tuple of one buffer
        if self._unsent:
            del self._unsent[: self._link.send(self._unsent, now)]
            if len(self._unsent) > _MAX_UNSENT:
                proxy.counters.bump("proxy.link_full", len(self._unsent) - _MAX_UNSENT)
                del self._unsent[_MAX_UNSENT:]
        return len(frames)

    def wants_write(self) -> bool:
        """While something is kept."""
        return bool(self._unsent) or self._link.wants_write()

    def next_timeout(self) -> Micros | None:
        """The earlier one of link and proxy."""
        instants = (self._link.next_timeout(), self._proxy.next_timeout())
        return min((instant for instant in instants if instant is not None), default=None)

    def close(self) -> None:
        """Close the link."""
        self._link.close()
