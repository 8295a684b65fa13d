"""asyncio's transport on a stack's connection, so that protocol libraries run on it as they run on sockets.

Read before editing: the chapter "Transports and Protocols" of asyncio's reference, which states who calls what when.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from typing import Any, Final, final

from pystack.tcp import state
from pystack.tcp.events import CLOSED, DATA, EOF, OPEN, SENT, TcpError
from pystack.tcp.tcb import Connection

_READ_MAX: Final = 256 * 1024
_HIGH_WATER: Final = 64 * 1024  # asyncio's own defaults
_LOW_FRACTION: Final = 4

_ERRORS: Final[dict[TcpError, Callable[[], OSError]]] = {
    TcpError.REFUSED: lambda: ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED)),
    TcpError.RESET: lambda: ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
    TcpError.TIMED_OUT: lambda: TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)),
    TcpError.UNREACHABLE: lambda: OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)),
    TcpError.ABORTED: lambda: ConnectionAbortedError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED)),
}


def error_of(connection: Connection) -> OSError | None:
    """What a socket's call would have raised for the way the connection ended; None for an orderly end."""
    return None if connection.error is None else _ERRORS[connection.error]()


def name_of(address: bytes | None, port: int) -> tuple[str, int]:
    """An address of 4 bytes (None: all of ours) and a port as a socket tells them."""
    return str(IPv4Address(address or bytes(4))), port


@final
class StackTransport(asyncio.Transport):
    """One TCP connection of a stack.

    Args:
        wake: has the driver look at the stack soon.
        on_open: called once with None when the connection is established and the protocol knows, or with the error.
        on_lost: called once when the protocol was told that the connection is lost.
    """

    _start_tls_compatible = True  # what loop.start_tls() asks for

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: Connection,
        protocol: asyncio.BaseProtocol,
        wake: Callable[[], None],
        *,
        on_open: Callable[[OSError | None], None] | None = None,
        on_lost: Callable[[StackTransport], None] | None = None,
    ) -> None:
        super().__init__(
            {
                "peername": name_of(connection.remote_addr, connection.remote_port),
                "sockname": name_of(connection.local_addr, connection.local_port),
                "connection": connection,
            }
        )
        self._loop = loop
        self._connection = connection
        self._wake = wake
        self._on_open = on_open
        self._on_lost = on_lost
        self._pending: deque[bytes | memoryview] = deque()  # written, beyond what the connection's send buffer takes
        self._pending_bytes = 0
        self._eof_written = False  # write_eof() was called: FIN once `_pending` is empty
        self._closing = False
        self._connected = False  # connection_made was called
        self._lost = False  # connection_lost is going to be called
        self._over = False  # the connection has ended; what it received may still be unread
        self._reading = True
        self._eof_told = False
        self._protocol_paused = False
        self.set_protocol(protocol)
        self.set_write_buffer_limits()

    # ------------------------------------------------------------------------------------------------ from the stack

    def on_events(self, flags: int) -> None:
        """Take what the stack says of the connection."""
        if flags & OPEN:
            self._opened()
        if flags & SENT:
            self._flush()
        if flags & (DATA | EOF):
            self._deliver()
        if flags & CLOSED:
            self._over = True
            self._closed()

    def start(self) -> None:
        """Begin with a connection that is established already: one that a listener gave."""
        self._over = self._connection.state == state.CLOSED
        self._opened()
        self._deliver()

    def fail(self, error: OSError) -> None:
        """End without a word to the peer: the stack has no link any more."""
        self._told_open(error)
        self._closing = True
        self._lose(error)

    def _opened(self) -> None:
        if self._connected or self._closing:
            return
        self._connected = True
        self._call(self._protocol.connection_made, self)
        self._told_open(None)

    def _told_open(self, error: OSError | None) -> None:
        if self._on_open is not None:
            on_open, self._on_open = self._on_open, None
            on_open(error)

    def _deliver(self) -> None:
        """Hand over what can be read while the protocol wants it, then the end of the stream."""
        connection = self._connection
        while self._reading and not self._closing and connection.readable:
            self._hand_over()
        if connection.eof and self._reading and not self._closing and not self._eof_told:
            self._eof_told = True
            protocol = self._protocol
            keep_open = isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol) and self._call(
                protocol.eof_received
            )
            if not keep_open:
                self.close()
        if self._over:
            self._closed()

    def _hand_over(self) -> None:
        protocol = self._protocol
        if isinstance(protocol, asyncio.BufferedProtocol):
            buffer = self._call(protocol.get_buffer, -1)
            if not buffer:
                self._force_close(RuntimeError("get_buffer() returned an empty buffer"))
                return
            data = self._connection.read(len(buffer))
            buffer[: len(data)] = data
            self._call(protocol.buffer_updated, len(data))
        else:
            assert isinstance(protocol, asyncio.Protocol)
            self._call(protocol.data_received, self._connection.read(_READ_MAX))
        self._wake()  # reading opens the window

    def _closed(self) -> None:
        error = error_of(self._connection)
        self._told_open(error or _ERRORS[TcpError.ABORTED]())
        if error is None and self._connection.readable and not self._closing:
            return  # the protocol has paused; `_deliver` comes back here when it has read everything
        self._closing = True
        self._lose(error)

    def _lose(self, error: BaseException | None) -> None:
        """Forget what was not sent and tell the protocol soon that the connection is lost, once."""
        self._pending.clear()
        self._pending_bytes = 0
        if not self._lost:
            self._lost = True
            self._loop.call_soon(self._tell_lost, error)

    def _tell_lost(self, error: BaseException | None) -> None:
        if self._connected:
            self._protocol.connection_lost(error if isinstance(error, Exception) else None)
        if self._on_lost is not None:
            self._on_lost(self)

    def _call(self, callback: Callable[..., Any], *arguments: object) -> Any:
        """Call into the protocol; what it raises ends its connection and not the driver."""
        try:
            return callback(*arguments)
        except Exception as error:  # noqa: BLE001 - asyncio's transports do the same: report, and drop the connection
            self._loop.call_exception_handler(
                {
                    "message": f"{type(self._protocol).__name__} raised in {callback.__name__}",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._force_close(error)
            return None

    # --------------------------------------------------------------------------------------------------- for reading

    def is_reading(self) -> bool:
        """Whether data is handed to the protocol as it comes."""
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        """Stop handing data over. What comes stays in the receive buffer, so that the window closes."""
        self._reading = False

    def resume_reading(self) -> None:
        """Hand data over again, beginning with what waits."""
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._deliver)

    # --------------------------------------------------------------------------------------------------- for writing

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Queue ``data``; a buffer that its owner may change is copied."""
        if self._eof_written:
            raise RuntimeError("Cannot call write() after write_eof()")
        if self._closing or not data:
            return
        whole = data if isinstance(data, bytes) else bytes(data)
        taken = 0 if self._pending else self._connection.write(whole)
        if taken < len(whole):
            self._pending.append(memoryview(whole)[taken:])
            self._pending_bytes += len(whole) - taken
            self._pause_protocol_if_full()
        self._wake()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        """Queue all of ``list_of_data`` as one."""
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        """Always: TCP closes one direction at a time."""
        return True

    def write_eof(self) -> None:
        """Send a FIN after what was written; reading goes on."""
        if self._eof_written or self._closing:
            return
        self._eof_written = True
        if not self._pending:
            self._connection.shutdown()
            self._wake()

    def _flush(self) -> None:
        connection, pending = self._connection, self._pending
        while pending:
            head = pending[0]
            taken = connection.write(head)
            self._pending_bytes -= taken
            if taken < len(head):
                pending[0] = head[taken:]
                break
            pending.popleft()
        self._resume_protocol_if_drained()
        if not pending:
            if self._closing:
                self._finish()
            elif self._eof_written:
                connection.shutdown()

    def get_write_buffer_size(self) -> int:
        """Bytes written that do not fit the connection's send buffer yet."""
        return self._pending_bytes

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """The low and the high mark, in bytes."""
        return self._low, self._high

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Set the marks at which the protocol is paused and resumed, with asyncio's defaults."""
        if high is None:
            high = _HIGH_WATER if low is None else _LOW_FRACTION * low
        if low is None:
            low = high // _LOW_FRACTION
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high, self._low = high, low
        self._pause_protocol_if_full()

    def _pause_protocol_if_full(self) -> None:
        if self._pending_bytes > self._high and not self._protocol_paused:
            self._protocol_paused = True
            self._call(self._protocol.pause_writing)

    def _resume_protocol_if_drained(self) -> None:
        if self._protocol_paused and self._pending_bytes <= self._low:
            self._protocol_paused = False
            self._call(self._protocol.resume_writing)

    # ------------------------------------------------------------------------------------------------------- the end

    def is_closing(self) -> bool:
        """Whether it is closed or being closed."""
        return self._closing

    def close(self) -> None:
        """Close after what was written is handed over; the stack sees to its delivery."""
        if self._closing:
            return
        self._closing = True
        if not self._pending:
            self._finish()

    def _finish(self) -> None:
        self._connection.close()
        self._lose(None)
        self._wake()

    def abort(self) -> None:
        """Drop everything and send an RST."""
        self._force_close(None)

    def _force_close(self, error: BaseException | None) -> None:
        """Abort, with the protocol told the reason. The name is asyncio's, whose TLS calls it."""
        self._closing = True
        self._connection.abort()
        self._lose(error)
        self._wake()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Talk to ``protocol`` from now on."""
        self._protocol: Any = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Whom it talks to."""
        current: asyncio.BaseProtocol = self._protocol
        return current

    def __repr__(self) -> str:
        local, remote = self.get_extra_info("sockname"), self.get_extra_info("peername")
        return f"<{type(self).__name__} {local[0]}:{local[1]} to {remote[0]}:{remote[1]}>"
