"""TFTP, with options.

Read before editing: RFC 1350 sections 4 and 5, RFC 2347 (options), RFC 2348 (blksize), RFC 2349 (timeout, tsize),
RFC 7440 (windowsize).

::

           2 bytes     string    1 byte    string    1 byte    string   1 byte   string   1 byte
           +--------+------------+------+-----------+------+- - - - - -+------+- - - - - -+------+
    RRQ, 1 |  01    |  Filename  |  0   |   Mode    |  0   |  option   |  0   |   value   |  0   | ...
    WRQ, 2 +--------+------------+------+-----------+------+- - - - - -+------+- - - - - -+------+

           2 bytes   2 bytes     n bytes               2 bytes   2 bytes     string   1 byte
           +--------+---------+------------+           +--------+---------+----------+------+
    DATA   |  03    | Block # |    Data    |    ERROR  |  05    |  Code   |  Message |  0   |
           +--------+---------+------------+           +--------+---------+----------+------+

           2 bytes   2 bytes                           2 bytes   string   1 byte   string   1 byte
           +--------+---------+                        +--------+- - - - -+------+- - - - -+------+
    ACK    |  04    | Block # |                 OACK   |  06    |  option |  0   |  value  |  0   | ...
           +--------+---------+                        +--------+- - - - -+------+- - - - -+------+
"""

from __future__ import annotations

from typing import Final, NamedTuple, TypeAlias

import construct as c

from pystack.counters import Counters

RRQ: Final = 1
WRQ: Final = 2
DATA: Final = 3
ACK: Final = 4
ERROR: Final = 5
OACK: Final = 6

# Error codes (RFC 1350 appendix, RFC 2347).
NOT_DEFINED: Final = 0
FILE_NOT_FOUND: Final = 1
ACCESS_VIOLATION: Final = 2
ILLEGAL_OPERATION: Final = 4
UNKNOWN_TRANSFER: Final = 5
OPTION_REFUSED: Final = 8

DEFAULT_BLOCK_SIZE: Final = 512
MAX_BLOCK_SIZE: Final = 65_464
"""RFC 2348."""

_MAX_OPTIONS: Final = 16
_MAX_REQUEST: Final = 512
"""Bytes of a request or OACK (RFC 2347)."""

_STRING: Final = c.NullTerminated(c.GreedyBytes)
_OPTIONS: Final = c.GreedyRange(c.Struct("name" / _STRING, "value" / _STRING))
_REQUEST: Final = c.Struct("filename" / _STRING, "mode" / _STRING, "options" / _OPTIONS)
MESSAGE: Final = c.Struct(
    "opcode" / c.Int16ub,
    "body"
    / c.Switch(
        c.this.opcode,
        {
            RRQ: _REQUEST,
            WRQ: _REQUEST,
            DATA: c.Struct("block" / c.Int16ub, "data" / c.GreedyBytes),
            ACK: c.Struct("block" / c.Int16ub),
            ERROR: c.Struct("code" / c.Int16ub, "message" / _STRING),
            OACK: c.Struct("options" / _OPTIONS),
        },
    ),
)
"""Every message, for generators and the tests' comparison; network bytes go to `parse_untrusted`."""


class Request(NamedTuple):
    """RRQ or WRQ. ``filename`` is as it came (see `safe_name`); mode and option names in lower case."""

    opcode: int
    filename: bytes
    mode: bytes
    options: tuple[tuple[bytes, bytes], ...]


class Data(NamedTuple):
    """One block; shorter than the block size it is the last."""

    block: int
    data: bytes


class Ack(NamedTuple):
    """The block that is acknowledged."""

    block: int


class Error(NamedTuple):
    """The transfer is over."""

    code: int
    message: bytes


class Oack(NamedTuple):
    """The options that are accepted, names in lower case."""

    options: tuple[tuple[bytes, bytes], ...]


Message: TypeAlias = Request | Data | Ack | Error | Oack


def parse_untrusted(data: bytes, counters: Counters) -> Message | None:
    """One message, the whole of a UDP payload.

    Returns:
        None when it ends before its fields do (`tftp.short`), has no known opcode (`tftp.bad_opcode`), or holds a
        string without its zero, an empty file name, a name without value, more than 16 options, or a request longer
        than 512 bytes (`tftp.bad_string`).
    """
    if len(data) < 4:
        counters.bump("tftp.short")
        return None
    opcode, number = data[0] << 8 | data[1], data[2] << 8 | data[3]
    if opcode == DATA:
        return Data(number, data[4:])
    if opcode == ACK:
        return Ack(number)
    if opcode == ERROR:
        if data.find(b"\0", 4) < 0:
            counters.bump("tftp.bad_string")
            return None
        return Error(number, data[4 : data.index(b"\0", 4)])
    if opcode not in (RRQ, WRQ, OACK):
        counters.bump("tftp.bad_opcode")
        return None
    strings = data[2:].split(b"\0")
    # What follows the last zero is "" when all of them end, and an odd number of strings lacks a value.
    if strings.pop() or len(strings) % 2 or len(strings) > 2 * _MAX_OPTIONS or len(data) > _MAX_REQUEST:
        counters.bump("tftp.bad_string")
        return None
    pairs = tuple((name.lower(), value) for name, value in zip(strings[::2], strings[1::2], strict=True))
    if opcode == OACK:
        return Oack(pairs)
    if not strings[0]:
        counters.bump("tftp.bad_string")
        return None
    return Request(opcode, strings[0], strings[1].lower(), pairs[1:])


def safe_name(filename: bytes) -> tuple[str, ...] | None:
    """The parts of a relative path that stays below its directory, None when ``filename`` is not one.

    Refused: what is absolute or names a drive, ``..`` as any part, a backslash (a separator on some systems), NUL and
    other control characters, what is not UTF-8, and the empty name. ``.`` and doubled slashes are dropped. Symbolic
    links are for whoever opens the file beneath a directory descriptor.
    """
    try:
        name = filename.decode("utf-8")
    except UnicodeDecodeError:
        return None
    if not name or name.startswith("/") or "\\" in name or ":" in name or not name.isprintable():
        return None
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    return parts if parts and ".." not in parts else None


def build(message: Message) -> bytes:
    """The bytes of ``message``.

    Raises:
        ValueError: a string holds a zero byte.
        OverflowError: a number does not fit in 16 bits.
    """
    match message:
        case Request(opcode, filename, mode, options):
            return _number(opcode) + _strings(filename, mode, *(text for pair in options for text in pair))
        case Data(block, data):
            return _number(DATA) + _number(block) + data
        case Ack(block):
            return _number(ACK) + _number(block)
        case Error(code, text):
            return _number(ERROR) + _number(code) + _strings(text)
        case Oack(options):
            return _number(OACK) + _strings(*(text for pair in options for text in pair))


def _number(value: int) -> bytes:
    return value.to_bytes(2, "big")


def _strings(*texts: bytes) -> bytes:
    if any(b"\0" in text for text in texts):
        raise ValueError("a TFTP string cannot hold a zero byte")
    return b"".join([text + b"\0" for text in texts])
