"""`pystack trace`: one line for every frame of a capture file or of an interface."""

from __future__ import annotations

import itertools
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Final

import click

from pystack.errors import UsageError

_ALL_PROTOCOLS: Final = 0x0300  # htons(ETH_P_ALL), packet(7)
_LARGEST_FRAME: Final = 1 << 18
_DIRECTIONS: Final = ("", "in  ", "out ")


@click.command(name="trace")
@click.option("-i", "--interface", metavar="NAME", help="Listen on an interface of this network namespace.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="Stop after so many frames.")
@click.option("-K", "--no-checksums", is_flag=True, help="Do not verify checksums.")
@click.argument("file", required=False)
def command(*, interface: str | None, count: int | None, no_checksums: bool, file: str | None) -> None:
    """Print one line for every frame of FILE (pcap or pcapng), or of an interface until Ctrl-C.

    To see what the guest of `run` sees: pystack run -- sh -c 'pystack trace -i tap0 & exec ...'. To keep it: --capture.
    """
    if (interface is None) == (file is None):
        raise UsageError("Say what to print: give either a capture FILE or -i NAME.")
    from pystack.wire import pretty  # noqa: PLC0415 - the printer is for a command line that makes sense

    # What an interface shows of our own host's frames are checksums that the hardware would fill in.
    verify = not no_checksums and file is not None
    frames = _of_file(file) if file is not None else _of_interface(interface or "")
    for at, direction, frame in itertools.islice(frames, count):
        line = f"{pretty.clock(at // 1000)} {_DIRECTIONS[direction]}{pretty.line(frame, checksums=verify)}"
        print(line, flush=interface is not None)
    sys.stdout.flush()  # here, where a reader who has gone is not an error


def _of_file(name: str) -> Iterator[tuple[int, int, bytes]]:
    from pystack.link import pcap  # noqa: PLC0415 - likewise

    for record in pcap.read_file(name):
        yield record.at, record.direction, record.data


def _of_interface(name: str) -> Iterator[tuple[int, int, bytes]]:
    try:
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, _ALL_PROTOCOLS)
    except PermissionError:
        raise UsageError(f"You may not listen on {name}: run as root, or inside `pystack run`.") from None
    with listener:
        try:
            listener.bind((name, 0))
        except OSError as error:
            raise UsageError(f"There is no interface {name!r} here ({error.strerror}): see `ip link`.") from None
        while True:
            try:
                frame, (_, _, kind, *_) = listener.recvfrom(_LARGEST_FRAME)
            except OSError as error:
                raise UsageError(f"The interface {name} is gone: {os.strerror(error.errno or 0)}.") from None
            yield time.time_ns(), 2 if kind == socket.PACKET_OUTGOING else 1, frame
