"""Why two machines that were the same may have said different things: what can be told from the bytes. Pure functions.

A guess, for a person who looks for what to make deterministic. It is made of the stream around the first byte that is
not the same: `likely` tries what is most specific first.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

_UUID: Final = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_HEX: Final = re.compile(rb"[0-9a-fA-F]{12,}")
_TOKEN: Final = re.compile(rb"[A-Za-z0-9+/_=-]{16,}")
_NUMBER: Final = re.compile(rb"[0-9]+(?:[.:][0-9]+)*")
_CLOCK: Final = re.compile(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ]?[0-9:.+Z-]*|[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?")
_HEADER: Final = re.compile(rb"([A-Za-z][A-Za-z0-9-]*):[ \t]*[^\r\n]*")
_SEPARATORS: Final = (b"\r\n", b"\n", b"&", b",", b";", b"\0", b" ")
_HTTP_TIMES: Final = frozenset({b"date", b"expires", b"last-modified"})
_HTTP_TOKENS: Final = frozenset({b"set-cookie", b"etag", b"x-request-id", b"content-security-policy"})
_EPOCH: Final = range(1_000_000_000, 4_000_000_000)  # seconds of 2001 to 2096
_RANDOM_BYTES: Final = 12

_TLS_HANDSHAKE: Final = 22
_TLS_RECORD: Final = 5  # type, version, length: RFC 8446 section 5.1
_TLS_SERVER_HELLO: Final = 2  # type and length, 4 bytes, and a version, 2, before the random: section 4.1.3
_TLS_NAMES: Final = {20: "change of cipher", 21: "alert", 22: "handshake", 23: "application data"}


def likely(primary: bytes, secondary: bytes, at: int) -> str:
    """The likely cause of a difference, "" when none can be told.

    Args:
        primary, secondary: the stream, or the datagram, around it; both start at the same place.
        at: where in both the first byte is that is not the same.
    """
    if at >= len(primary) or at >= len(secondary):
        return _shorter(primary, secondary)
    for guess in (_tls, _http_header, _uuid, _order, _clock_time, _random):
        cause = guess(primary, secondary, at)
        if cause:
            return cause
    return ""


def of_options(primary: str, secondary: str) -> str:
    """The likely cause of SYNs that differ, from what each negotiates in words (``timestamps=1``)."""
    ours, theirs = _settings(primary), _settings(secondary)
    differing = [name for name in ours if name in theirs and ours[name] != theirs[name]]
    if "timestamps" in differing:
        return "the TCP timestamp option, which only one of the two negotiates (net.ipv4.tcp_timestamps)"
    names = {"mss": "the MSS, as of different MTUs", "wscale": "the window scale, as of different buffer sizes",
             "sack": "the SACK option, which only one of the two negotiates (net.ipv4.tcp_sack)"}  # fmt: skip
    return next((names[name] for name in differing if name in names), "")


def _settings(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words.replace(",", " ").split() if "=" in word)


def _shorter(primary: bytes, secondary: bytes) -> str:
    if len(primary) == len(secondary):
        return ""
    which = "secondary" if len(secondary) < len(primary) else "primary"
    return f"the {which} sent less: it stopped, or its capture did"


# ------------------------------------------------------------------------------------------------------------------ TLS


def _tls(primary: bytes, secondary: bytes, at: int) -> str:
    """Whether the difference is in a TLS record: walk records from every place where one may start."""
    for start in range(min(at, len(primary) - _TLS_RECORD), -1, -1):
        if not (_is_record(primary, start) and _is_record(secondary, start)):
            continue
        record = _walk(primary, start, at)
        if record >= 0:
            return _in_record(primary, record, at)
    return ""


def _is_record(data: bytes, at: int) -> bool:
    """Whether a record of TLS 1.0 to 1.3 may start at ``at``; not that one does."""
    head = data[at : at + _TLS_RECORD]
    return len(head) == _TLS_RECORD and head[0] in _TLS_NAMES and head[1] == 3 and head[2] <= 4 and head[3] <= 0x48


def _walk(data: bytes, start: int, at: int) -> int:
    """Where the record starts that ``at`` is in, if records follow one another from ``start`` to there; else -1."""
    while _is_record(data, start):
        end = start + _TLS_RECORD + int.from_bytes(data[start + 3 : start + 5], "big")
        if at < end:
            return start
        start = end
    return -1


def _in_record(data: bytes, start: int, at: int) -> str:
    kind = data[start]
    body = start + _TLS_RECORD
    if kind == _TLS_HANDSHAKE and data[body : body + 1] == bytes((_TLS_SERVER_HELLO,)):
        offset = at - body - 6
        if 0 <= offset < 32:
            return "the random of a TLS ServerHello, which each machine draws for itself"
        return "a TLS ServerHello: its session or its key share"
    return f"TLS {_TLS_NAMES[kind]}: encrypted under another key, or signed anew"


# ----------------------------------------------------------------------------------------------------------------- text


def _line(data: bytes, at: int) -> tuple[int, int]:
    low = data.rfind(b"\n", 0, at) + 1
    high = data.find(b"\n", at)
    return low, len(data) if high < 0 else high


def _http_header(primary: bytes, secondary: bytes, at: int) -> str:
    """A header line of an HTTP message of the same name on both sides, with a difference in its value."""
    low, high = _line(primary, at)
    other_low, other_high = _line(secondary, at)
    ours = _HEADER.match(primary, low, high)
    theirs = _HEADER.match(secondary, other_low, other_high)
    if ours is None or theirs is None or ours[1].lower() != theirs[1].lower() or at <= ours.end(1):
        return ""
    name = ours[1].lower()
    if name in _HTTP_TIMES:
        return f"the HTTP header {ours[1].decode()}: both answered, but not in the same second"
    if name in _HTTP_TOKENS:
        return f"the HTTP header {ours[1].decode()}: a token that each machine makes for itself"
    return f"the HTTP header {ours[1].decode()}" if _is_http(primary, low) else ""


def _is_http(data: bytes, line: int) -> bool:
    start = data.rfind(b"HTTP/1.", 0, line)
    return start >= 0 and b"\r\n\r\n" not in data[start:line]


def _found_at(pattern: re.Pattern[bytes], data: bytes, at: int) -> bytes:
    """The match of ``pattern`` that ``at`` is in, b"" if there is none."""
    for match in pattern.finditer(data, max(0, at - 256)):
        if match.start() <= at < match.end():
            return match[0]
        if match.start() > at:
            break
    return b""


def _uuid(primary: bytes, secondary: bytes, at: int) -> str:
    if _found_at(_UUID, primary, at) and _found_at(_UUID, secondary, at):
        return "a UUID, which each machine makes for itself"
    return ""


def _clock_time(primary: bytes, secondary: bytes, at: int) -> str:
    if _found_at(_CLOCK, primary, at) and _found_at(_CLOCK, secondary, at):
        return "a time of day"
    ours, theirs = _found_at(_NUMBER, primary, at), _found_at(_NUMBER, secondary, at)
    if not ours or not theirs:
        return ""
    whole = [int(number.split(b".")[0]) for number in (ours, theirs) if b":" not in number and len(number) < 24]
    if len(whole) == 2 and all(number in _EPOCH for number in whole):
        return "a time in seconds since 1970"
    return (
        ""
        if _found_at(_HEX, primary, at) or _found_at(_TOKEN, primary, at)
        else "a number, such as a counter or a time"
    )


def _order(primary: bytes, secondary: bytes, at: int) -> str:
    """The same parts in another order, as of a hash table whose seed is random."""
    low = max(_line(primary, at)[0], _line(secondary, at)[0]) if at else 0
    for separator in _SEPARATORS:
        start = 0 if separator in (b"\n", b"\r\n") else low
        ours = [part.strip(b" \t{}[]()") for part in primary[start:].split(separator)]
        theirs = [part.strip(b" \t{}[]()") for part in secondary[start:].split(separator)]
        last = _last_unequal(ours, theirs)
        first = next(
            (index for index, (one, other) in enumerate(zip(ours, theirs, strict=False)) if one != other), last
        )
        if last > first and Counter(ours[first : last + 1]) == Counter(theirs[first : last + 1]):
            return "the same parts in another order, as of a hash table whose seed is random"
    return ""


def _last_unequal(ours: list[bytes], theirs: list[bytes]) -> int:
    """Up to where the two lists are a rearrangement of each other: the first place after which nothing is missing."""
    balance: Counter[bytes] = Counter()
    last = unequal = 0
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            unequal += 1
        balance[one] += 1
        balance[other] -= 1
        if not balance[one]:
            del balance[one]
        if not balance[other]:
            balance.pop(other, None)
        if unequal and not balance:
            last = index
            break
    return last


def _random(primary: bytes, secondary: bytes, at: int) -> str:
    """Something that looks drawn at random: a long token, or bytes of which hardly any are the same."""
    for pattern, name in ((_HEX, "hexadecimal digits"), (_TOKEN, "letters and digits")):
        ours, theirs = _found_at(pattern, primary, at), _found_at(pattern, secondary, at)
        if ours and len(ours) == len(theirs) and any(character in b"0123456789" for character in ours):
            return f"{len(ours)} {name} that look random, such as a key or a token"
    ours, theirs = primary[at : at + 32], secondary[at : at + 32]
    length = min(len(ours), len(theirs))
    if length >= _RANDOM_BYTES:
        unequal = sum(one != other for one, other in zip(ours, theirs, strict=False))
        binary = sum(byte < 9 or byte > 126 for byte in ours[:length])
        if unequal >= length * 3 // 4 and binary >= length // 4:
            return "bytes that look random"
    return ""
