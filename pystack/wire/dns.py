r"""DNS messages: what a forwarder and a printer need.

Read before editing: RFC 1035 sections 4.1 (format) and 4.1.4 (compression), RFC 2181 section 11 (names), RFC 6891
section 6.1.2 (OPT), RFC 3596 section 2 (AAAA), RFC 2782 (SRV).

::

      0  1  2  3  4  5  6  7  8  9  0  1  2  3  4  5
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+
    |                      ID                       |      then, as often as the counts say:
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+
    |QR|   Opcode  |AA|TC|RD|RA| Z|AD|CD|   RCODE   |      question   NAME, QTYPE, QCLASS
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+      record     NAME, TYPE, CLASS, TTL, RDLENGTH, RDATA
    |                    QDCOUNT                    |
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+      NAME       labels (length, bytes) up to the empty one,
    |                    ANCOUNT                    |                 or a pointer (11, 14 bits of offset) to the
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+                 rest of it, earlier in the message
    |                    NSCOUNT                    |
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+
    |                    ARCOUNT                    |
    +--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+--+

A name is held in wire form without compression (``b"\x07example\x03com\x00"``): labels may hold any byte, dots too.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple, TypeAlias

import construct as c

from pystack.counters import Counters
from pystack.errors import WireError
from pystack.wire.layout import Layout

Name: TypeAlias = bytes
"""Wire form, uncompressed: at most 255 bytes, each label at most 63."""

PORT: Final = 53

A: Final = 1
NS: Final = 2
CNAME: Final = 5
SOA: Final = 6
PTR: Final = 12
MX: Final = 15
TXT: Final = 16
AAAA: Final = 28
SRV: Final = 33
OPT: Final = 41
HTTPS: Final = 65
ANY: Final = 255
CLASS_IN: Final = 1

TYPE_NAMES: Final = {
    A: "A", NS: "NS", CNAME: "CNAME", SOA: "SOA", PTR: "PTR", MX: "MX", TXT: "TXT", AAAA: "AAAA", SRV: "SRV",
    OPT: "OPT", HTTPS: "HTTPS", ANY: "ANY",
}  # fmt: skip

NOERROR: Final = 0
FORMERR: Final = 1
SERVFAIL: Final = 2
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5

ROOT: Final[Name] = b"\0"

_MAX_NAME: Final = 255
_MAX_RECORDS: Final = 512
_QUESTION_TAIL: Final = struct.Struct("!HH")
_RECORD_TAIL: Final = struct.Struct("!HHIH")
# Where names stand in the data of a record: bytes in front of them, and how many names (RFC 1035 section 3.3).
_NAMES_IN: Final = {NS: (0, 1), CNAME: (0, 1), PTR: (0, 1), SOA: (0, 2), MX: (2, 1), SRV: (6, 1)}


class Header(NamedTuple):
    """The 12 bytes in front. Flags are 0 or 1."""

    ident: int
    qr: int
    opcode: int
    aa: int
    tc: int
    rd: int
    ra: int
    z: int
    ad: int
    cd: int
    rcode: int
    qdcount: int
    ancount: int
    nscount: int
    arcount: int


HEADER: Final = Layout.derive(
    c.Struct(
        "ident" / c.Int16ub,
        "flags"
        / c.BitStruct(
            "qr" / c.BitsInteger(1),
            "opcode" / c.BitsInteger(4),
            "aa" / c.BitsInteger(1),
            "tc" / c.BitsInteger(1),
            "rd" / c.BitsInteger(1),
            "ra" / c.BitsInteger(1),
            "z" / c.BitsInteger(1),
            "ad" / c.BitsInteger(1),
            "cd" / c.BitsInteger(1),
            "rcode" / c.BitsInteger(4),
        ),
        "qdcount" / c.Int16ub,
        "ancount" / c.Int16ub,
        "nscount" / c.Int16ub,
        "arcount" / c.Int16ub,
    ),
    Header,
)

_LABELS: Final = c.RepeatUntil(lambda label, _found, _context: not label, c.Prefixed(c.Int8ub, c.GreedyBytes))
_RECORD: Final = c.Struct(
    "name" / _LABELS,
    "rtype" / c.Int16ub,
    "rclass" / c.Int16ub,
    "ttl" / c.Int32ub,
    "rdata" / c.Prefixed(c.Int16ub, c.GreedyBytes),
)
MESSAGE: Final = c.Struct(
    "header" / HEADER.declaration,
    "questions" / c.Array(c.this.header.qdcount, c.Struct("name" / _LABELS, "qtype" / c.Int16ub, "qclass" / c.Int16ub)),
    "answers" / c.Array(c.this.header.ancount, _RECORD),
    "authorities" / c.Array(c.this.header.nscount, _RECORD),
    "additionals" / c.Array(c.this.header.arcount, _RECORD),
)
"""A message without compression, for generators and the tests' comparison; network bytes go to `parse_untrusted`."""


class Question(NamedTuple):
    """What is asked."""

    name: Name
    qtype: int
    qclass: int = CLASS_IN


class Record(NamedTuple):
    """One resource record; names inside ``rdata`` of the types of RFC 1035 and SRV are uncompressed too."""

    name: Name
    rtype: int
    rclass: int
    ttl: int
    rdata: bytes


class Message(NamedTuple):
    """A whole message. The counts in ``header`` are those that were received; `build` computes its own."""

    header: Header
    questions: tuple[Question, ...]
    answers: tuple[Record, ...] = ()
    authorities: tuple[Record, ...] = ()
    additionals: tuple[Record, ...] = ()


def parse_untrusted(data: bytes, counters: Counters) -> Message | None:
    """The message that is the whole of a UDP payload (or of what a TCP length counted). Bytes behind it are ignored.

    Returns:
        None, and one counter: `dns.short` (it ends before its fields do), `dns.bad_name` (a pointer that does not point
        back, a reserved label type, a name above 255 bytes), `dns.bad_rdata` (names in the data do not fit it), or
        `dns.too_many_records` (more than 512).
    """
    try:
        return _parse(data)
    except WireError as error:
        counters.bump(error.reason)
        return None


def parse_question_untrusted(data: bytes, counters: Counters) -> tuple[Header, Question | None] | None:
    """The header and the first question alone (None when there is none): what a forwarder looks at.

    Returns:
        None as `parse_untrusted`.
    """
    try:
        header = _header(data)
        return header, _question(data, HEADER.size)[0] if header.qdcount else None
    except WireError as error:
        counters.bump(error.reason)
        return None


def _header(data: bytes) -> Header:
    header = HEADER.unpack_untrusted(data)
    if header is None:
        raise WireError("dns.short")
    return header


def _parse(data: bytes) -> Message:
    header = _header(data)
    if header.qdcount + header.ancount + header.nscount + header.arcount > _MAX_RECORDS:
        raise WireError("dns.too_many_records")
    at = HEADER.size
    questions = []
    for _ in range(header.qdcount):
        question, at = _question(data, at)
        questions.append(question)
    sections = []
    for count in (header.ancount, header.nscount, header.arcount):
        records = []
        for _ in range(count):
            record, at = _record(data, at)
            records.append(record)
        sections.append(tuple(records))
    return Message(header, tuple(questions), *sections)


def _question(data: bytes, at: int) -> tuple[Question, int]:
    name, at = read_name_untrusted(data, at)
    if at + 4 > len(data):
        raise WireError("dns.short")
    return Question(name, *_QUESTION_TAIL.unpack_from(data, at)), at + 4


def _record(data: bytes, at: int) -> tuple[Record, int]:
    name, at = read_name_untrusted(data, at)
    if at + 10 > len(data):
        raise WireError("dns.short")
    rtype, rclass, ttl, length = _RECORD_TAIL.unpack_from(data, at)
    at += 10
    end = at + length
    if end > len(data):
        raise WireError("dns.short")
    return Record(name, rtype, rclass, ttl, _rdata(data, rtype, at, end)), end


def _rdata(data: bytes, rtype: int, at: int, end: int) -> bytes:
    """The record's data with the names in it uncompressed."""
    if rtype not in _NAMES_IN:
        return data[at:end]
    before, count = _NAMES_IN[rtype]
    expanded = data[at : min(at + before, end)]
    at += before
    for _ in range(count):
        name, at = read_name_untrusted(data, at)
        expanded += name
    if at > end:
        raise WireError("dns.bad_rdata")
    return expanded + data[at:end]


def read_name_untrusted(data: bytes, at: int) -> tuple[Name, int]:
    """The name that starts at ``at``, uncompressed, and where its own bytes end.

    A pointer must point to before the place where the labels that it continues began, so that following pointers ends;
    the name's length is bounded as RFC 1035 section 2.3.4 says. Every pointer that is legal does that.

    Raises:
        WireError: `dns.short` or `dns.bad_name`.
    """
    name = bytearray()
    end = 0
    began = at
    while True:
        if at >= len(data):
            raise WireError("dns.short")
        length = data[at]
        if length < 64:
            label_end = at + 1 + length
            if label_end > len(data):
                raise WireError("dns.short")
            name += data[at:label_end]
            if len(name) > _MAX_NAME:
                raise WireError("dns.bad_name", "too long")
            at = label_end
            if not length:
                return bytes(name), end or at
        elif length >= 192:
            if at + 2 > len(data):
                raise WireError("dns.short")
            target = (length & 0x3F) << 8 | data[at + 1]
            end = end or at + 2
            if target >= began:
                raise WireError("dns.bad_name", "a pointer that does not point back")
            at = began = target
        else:
            raise WireError("dns.bad_name", "a reserved label type")


def name_from_text(text: str) -> Name:
    """The wire form of ``www.example.com`` or ``www.example.com.``; ``.`` is the root.

    Raises:
        ValueError: an empty label, one longer than 63 bytes, a name longer than 255, or what IDNA cannot encode.
    """
    if text == ".":
        return ROOT
    name = bytearray()
    for part in text.removesuffix(".").split("."):
        label = part.encode("ascii") if part.isascii() else part.encode("idna")
        if not 0 < len(label) < 64:
            raise ValueError(f"{text!r} is not a domain name: each part has 1 to 63 bytes")
        name += bytes((len(label),)) + label
    name += ROOT
    if len(name) > _MAX_NAME:
        raise ValueError(f"{text!r} is not a domain name: it is longer than 255 bytes")
    return bytes(name)


def name_labels(name: Name) -> tuple[bytes, ...]:
    """The labels of a name that `parse_untrusted` or `name_from_text` gave, without the empty one."""
    labels = []
    at = 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    return tuple(labels)


def name_text(name: Name) -> str:
    r"""For people: ``www.example.com.``, with what is not printable as ``\DDD`` (RFC 1035 section 5.1)."""
    labels = name_labels(name)
    return "".join(["".join(map(_escape, label)) + "." for label in labels]) or "."


def _escape(byte: int) -> str:
    if byte in b".\\":
        return "\\" + chr(byte)
    return chr(byte) if 0x21 <= byte <= 0x7E else f"\\{byte:03d}"


def build(message: Message) -> bytes:
    """The bytes of ``message``, without compression; the counts in its header are replaced by the true ones.

    Raises:
        struct.error, ValueError: a number does not fit in its field.
    """
    sections = (message.answers, message.authorities, message.additionals)
    counts = dict(zip(("ancount", "nscount", "arcount"), map(len, sections), strict=True))
    header = message.header._replace(qdcount=len(message.questions), **counts)
    parts = [HEADER.pack(**header._asdict())]
    parts += [name + _QUESTION_TAIL.pack(qtype, qclass) for name, qtype, qclass in message.questions]
    for records in sections:
        parts += [
            name + _RECORD_TAIL.pack(rtype, rclass, ttl, len(rdata)) + rdata
            for name, rtype, rclass, ttl, rdata in records
        ]
    return b"".join(parts)


def build_query(ident: int, name: Name, qtype: int = A) -> bytes:
    """A query for one name with recursion desired."""
    return build(Message(_QUERY._replace(ident=ident), (Question(name, qtype),)))


def build_response(
    query: Header, question: Question | None, *, rcode: int = NOERROR, answers: tuple[Record, ...] = ()
) -> bytes:
    """An answer to ``query`` from a server that recurses: its ident, opcode and RD, and the question repeated."""
    header = _QUERY._replace(ident=query.ident, qr=1, opcode=query.opcode, rd=query.rd, ra=1, rcode=rcode)
    return build(Message(header, (question,) if question else (), answers))


_QUERY: Final = Header(
    ident=0, qr=0, opcode=0, aa=0, tc=0, rd=1, ra=0, z=0, ad=0, cd=0, rcode=0,
    qdcount=0, ancount=0, nscount=0, arcount=0,
)  # fmt: skip
