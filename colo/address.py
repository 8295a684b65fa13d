"""Where a stream socket of a `colo` command is, as a person writes it: ``unix:PATH`` or ``tcp:HOST:PORT``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from pystack import UsageError
from pystack.link import sockets

_HOST_MAX = 253  # RFC 1035 section 2.3.4, less the bytes that text does not show


@dataclass(frozen=True, slots=True)
class Address:
    """Where a stream socket is, and whether this side listens there.

    Attributes:
        where: the path of a UNIX socket, or host and port. server: whether to listen and wait.
    """

    where: sockets.Address
    server: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``unix:PATH`` or ``tcp:HOST:PORT``, with ``,server`` behind it to listen.

        Raises:
            UsageError: it is neither.
        """
        body, comma, option = text.rpartition(",")
        if not comma:
            body, option = text, ""
        if option != "server" and comma:
            raise UsageError(f"{text!r}: after the comma only 'server' is known; write {body},server to listen there.")
        kind, _, rest = body.partition(":")
        if kind == "unix" and rest:
            return cls(rest, option == "server")
        host, _, port = rest.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if kind == "tcp" and _is_host(host) and port.isdecimal() and int(port) <= 65_535:
            return cls((host, int(port)), option == "server")
        raise UsageError(f"{text!r} is no address: write unix:PATH or tcp:HOST:PORT, and ,server behind it to listen.")

    def __str__(self) -> str:
        kind = "tcp" if isinstance(self.where, tuple) else "unix"
        return f"{kind}:{sockets.text(self.where)}"


def _is_host(host: str) -> bool:
    """Whether the resolver can be asked for it: it raises something else for what cannot be a name at all."""
    return 0 < len(host) <= _HOST_MAX and all(0 < len(label) <= 63 for label in host.rstrip(".").split("."))


def parse_all(**options: str | None) -> dict[str, Address]:
    """The addresses of several options, by the option's name with underscores; options without one are left out.

    Raises:
        UsageError: one is no address, or two options name the same socket.
    """
    found: dict[str, Address] = {}
    seen: dict[sockets.Address, str] = {}
    for name, text in options.items():
        if text is None:
            continue
        address = Address.parse(text)
        option = option_text(name)
        before = seen.setdefault(address.where, option)
        if before != option and not (isinstance(address.where, tuple) and address.where[1] == 0):
            raise UsageError(f"{before} and {option} name the same socket, {address}: give each one of its own.")
        found[name] = address
    return found


def option_text(name: str) -> str:
    """``primary_in`` as ``--primary-in``."""
    return "--" + name.rstrip("0123456789").rstrip("_").replace("_", "-")
