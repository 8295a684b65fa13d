"""Whom the host asks for names: the ``nameserver`` lines of resolv.conf, read again when the file changes."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Final, final

from pystack.slirp.dns_forwarder import MAX_RESOLVERS, PORT, Resolver

RESOLV_CONF: Final = Path("/etc/resolv.conf")

_LARGEST_FILE: Final = 65_536


def parse_resolv_conf(text: str) -> tuple[Resolver, ...]:
    """The resolvers that the C library would use (resolv.conf(5)); lines that it would not understand are skipped.

    A link-local IPv6 address is skipped as well: it means nothing without its zone.
    """
    resolvers: list[Resolver] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ip_address(words[1])
        except ValueError:
            continue
        if address.version == 4 or not address.is_link_local:
            resolvers.append((address.packed, PORT))
    return tuple(resolvers[:MAX_RESOLVERS])


@final
class ResolvConf:
    """The file at ``path``, and what it says. A file that is missing or unreadable names nobody."""

    def __init__(self, path: Path = RESOLV_CONF) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None

    def changed(self) -> tuple[Resolver, ...] | None:
        """The resolvers, if the file is not what it was at the last call; None if it is."""
        try:
            stat = self._path.stat()
            stamp = stat.st_mtime_ns, stat.st_ino, stat.st_size
            if stamp == self._stamp:
                return None
            with self._path.open(encoding="utf-8", errors="replace") as file:
                text = file.read(_LARGEST_FILE)
        except OSError:
            stamp, text = (0, 0, 0), ""
            if stamp == self._stamp:
                return None
        self._stamp = stamp
        return parse_resolv_conf(text)
