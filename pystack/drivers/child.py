"""A forked child and the socket on which it and its parent talk until it is what it should be."""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
from collections.abc import Callable
from typing import Final, final

from pystack.errors import PystackError, UsageError

ERROR: Final = b"E"
"""The kind of message whose text says what the child could not do."""

_MESSAGE_MAX: Final = 4096


@final
class Channel:
    """One end of the socket between parent and child: SEQPACKET messages of one byte, the kind, and a text."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, kind: bytes, text: str = "", fd: int | None = None) -> None:
        """Send a message of ``kind``, with the descriptor ``fd`` if there is one."""
        ancillary = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        self._socket.sendmsg([kind + text.encode(errors="surrogateescape")[: _MESSAGE_MAX - 1]], ancillary)

    def recv(self) -> tuple[bytes, str, int]:
        """Kind, text and descriptor (-1: none) of the next message; the kind is b"" at the end."""
        fds = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(_MESSAGE_MAX, socket.CMSG_SPACE(fds.itemsize))
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(payload[: fds.itemsize])
        return data[:1], data[1:].decode(errors="surrogateescape"), fds[0] if fds else -1

    def expect(self, kind: bytes) -> int:
        """The descriptor that came with a message of ``kind``.

        Raises:
            UsageError: the other side has sent `ERROR` instead; its text.
            PystackError: the other side has ended.
        """
        got, text, fd = self.recv()
        if got == kind:
            return fd
        if got == ERROR:
            raise UsageError(text)
        raise PystackError("The process in the namespace ended before it was ready.")

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def fork(child_main: Callable[[Channel], None]) -> tuple[int, Channel]:
    """Fork; in the child run ``child_main``, whose PystackError is told to the parent. Never returns in the child."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, Channel(ours)
    status = 1
    try:
        ours.close()
        channel = Channel(theirs)
        try:
            child_main(channel)
            status = 0
        except PystackError as error:
            channel.send(ERROR, str(error))
        except OSError as error:
            channel.send(ERROR, f"The namespace cannot be set up: {error}.")
    finally:
        os._exit(status)  # whatever happened: the parent's cleanup is not the child's


def reap(pid: int, *, kill: bool) -> int:
    """Wait for a child of ours, killing it first if asked; returns its wait status (0 when someone else reaped it)."""
    if kill:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    try:
        return os.waitpid(pid, 0)[1]
    except ChildProcessError:
        return 0
