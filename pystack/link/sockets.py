"""Stream sockets by address, UNIX or TCP, with a sentence for whatever goes wrong."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from pathlib import Path
from typing import Final, TypeAlias

from pystack.errors import UsageError

Address: TypeAlias = str | Path | tuple[str, int]
"""The path of a UNIX socket, or host and port of a TCP one."""

_UNIX_PATH_MAX: Final = 107  # sizeof(sun_path) less its terminating zero, unix(7)
_CONNECT_SECONDS: Final = 5.0
_PROBE_SECONDS: Final = 0.2


def listen(address: Address) -> socket.socket:
    """A non-blocking listening socket at ``address``.

    A UNIX socket is made for this user alone (mode 0600), in place of one that nobody serves any more; whoever closes
    it removes the file (`remove`).

    Raises:
        UsageError: the address cannot be had.
    """
    sock: socket.socket | None = None
    try:
        if isinstance(address, tuple):
            family, sockaddr = _resolve(address)
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(sockaddr)
        else:
            path = _checked_path(address)
            _remove_stale(path)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            os.fchmod(sock.fileno(), 0o600)  # before bind, so that the file is never open to others
            sock.bind(path)
        sock.listen(1)
        sock.setblocking(False)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise UsageError(f"Cannot listen at {text(address)}: {_why(error)}.") from None
    return sock


def connect(address: Address) -> socket.socket:
    """A socket that is connected to ``address``. Waits for up to 5 seconds.

    Raises:
        UsageError: nobody answers there.
    """
    sock: socket.socket | None = None
    try:
        if isinstance(address, tuple):
            family, sockaddr = _resolve(address)
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(sockaddr)
        else:
            path = _checked_path(address)
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(_CONNECT_SECONDS)
            sock.connect(path)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise UsageError(f"Cannot connect to {text(address)}: {_why(error)}; is the other side listening?") from None
    return sock


def remove(address: Address) -> None:
    """Remove the file of a UNIX socket; nothing for TCP."""
    if not isinstance(address, tuple):
        with contextlib.suppress(OSError):
            Path(address).unlink()


def text(address: Address) -> str:
    """``address`` as a person writes it."""
    if not isinstance(address, tuple):
        return str(address)
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _resolve(address: tuple[str, int]) -> tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]:
    host, port = address
    if not 0 <= port <= 65_535:
        raise UsageError(f"{port} is no port number: give one between 0 and 65535.")
    family, _, _, _, sockaddr = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    assert isinstance(sockaddr[0], str)  # not an AF_PACKET one
    return family, sockaddr


def _checked_path(address: str | Path) -> str:
    path = os.fspath(address)
    length = len(os.fsencode(path))
    if not 0 < length <= _UNIX_PATH_MAX or "\0" in path:
        raise UsageError(
            f"A UNIX socket's path is 1 to {_UNIX_PATH_MAX} bytes long, and this one is {length}: give a shorter one."
        )
    return path


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody serves; anything else at ``path`` stays, and is an error."""
    try:
        mode = Path(path).stat(follow_symlinks=False).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError(f"{path} exists and is not a socket: give another path, or remove it.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_SECONDS)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            Path(path).unlink(missing_ok=True)
            return
        except OSError:
            pass  # a full backlog, or not ours to open: somebody is there
    raise UsageError(f"{path} is served by another program already: give another path, or end that program.")


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
