"""DHCPv4: messages and options.

Read before editing: RFC 2131 sections 2 and 4.1 (messages), RFC 2132 (options), RFC 3396 (long options), RFC 3397
(domain search), RFC 3442 (classless routes).

::

     0                   1                   2                   3
     0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    +---------------+---------------+---------------+---------------+
    |     op (1)    |   htype (1)   |   hlen (1)    |   hops (1)    |
    +---------------+---------------+---------------+---------------+
    |                            xid (4)                            |
    +-------------------------------+-------------------------------+
    |           secs (2)            |           flags (2)           |
    +-------------------------------+-------------------------------+
    |                          ciaddr  (4)                          |
    +---------------------------------------------------------------+
    |                          yiaddr  (4)                          |
    +---------------------------------------------------------------+
    |                          siaddr  (4)                          |
    +---------------------------------------------------------------+
    |                          giaddr  (4)                          |
    +---------------------------------------------------------------+
    |                          chaddr  (16)                         |
    +---------------------------------------------------------------+
    |                          sname   (64)                         |
    +---------------------------------------------------------------+
    |                          file    (128)                        |
    +---------------------------------------------------------------+
    |    magic cookie 99.130.83.99, then options (code, length, data; 0 = pad, 255 = end)
    +---------------------------------------------------------------+
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import construct as c

from pystack.counters import Counters
from pystack.errors import WireError
from pystack.wire import dns
from pystack.wire.layout import Layout

SERVER_PORT: Final = 67
CLIENT_PORT: Final = 68

BOOTREQUEST: Final = 1
BOOTREPLY: Final = 2
FLAG_BROADCAST: Final = 0x8000

DISCOVER: Final = 1
OFFER: Final = 2
REQUEST: Final = 3
DECLINE: Final = 4
ACK: Final = 5
NAK: Final = 6
RELEASE: Final = 7
INFORM: Final = 8
TYPE_NAMES: Final = {
    DISCOVER: "Discover", OFFER: "Offer", REQUEST: "Request", DECLINE: "Decline", ACK: "ACK", NAK: "NACK",
    RELEASE: "Release", INFORM: "Inform",
}  # fmt: skip

# Option codes (RFC 2132 unless said).
PAD: Final = 0
OPT_SUBNET_MASK: Final = 1
OPT_ROUTERS: Final = 3
OPT_DNS_SERVERS: Final = 6
OPT_HOST_NAME: Final = 12
OPT_DOMAIN_NAME: Final = 15
OPT_MTU: Final = 26
OPT_BROADCAST: Final = 28
OPT_NTP_SERVERS: Final = 42
OPT_REQUESTED_ADDRESS: Final = 50
OPT_LEASE_SECONDS: Final = 51
OPT_OVERLOAD: Final = 52
OPT_MESSAGE_TYPE: Final = 53
OPT_SERVER_ID: Final = 54
OPT_PARAMETER_LIST: Final = 55
OPT_MESSAGE: Final = 56
OPT_MAX_MESSAGE: Final = 57
OPT_RENEWAL_SECONDS: Final = 58
OPT_REBINDING_SECONDS: Final = 59
OPT_VENDOR_CLASS: Final = 60
OPT_CLIENT_ID: Final = 61
OPT_TFTP_SERVER: Final = 66
OPT_BOOT_FILE: Final = 67
OPT_DOMAIN_SEARCH: Final = 119  # RFC 3397
OPT_CLASSLESS_ROUTES: Final = 121  # RFC 3442
END: Final = 255

COOKIE: Final = bytes((99, 130, 83, 99))
MIN_MESSAGE_BYTES: Final = 300
"""What BOOTP had; some clients drop less (RFC 1542 section 2.1)."""
MAX_CHADDR: Final = 16


class Header(NamedTuple):
    """The fixed part. Addresses are 4 bytes, ``chaddr`` 16 of which ``hlen`` count, ``sname`` 64 and ``file`` 128."""

    op: int
    htype: int
    hlen: int
    hops: int
    xid: int
    secs: int
    flags: int
    ciaddr: bytes
    yiaddr: bytes
    siaddr: bytes
    giaddr: bytes
    chaddr: bytes
    sname: bytes
    file: bytes


HEADER: Final = Layout.derive(
    c.Struct(
        "op" / c.Int8ub,
        "htype" / c.Int8ub,
        "hlen" / c.Int8ub,
        "hops" / c.Int8ub,
        "xid" / c.Int32ub,
        "secs" / c.Int16ub,
        "flags" / c.Int16ub,
        "ciaddr" / c.Bytes(4),
        "yiaddr" / c.Bytes(4),
        "siaddr" / c.Bytes(4),
        "giaddr" / c.Bytes(4),
        "chaddr" / c.Bytes(MAX_CHADDR),
        "sname" / c.Bytes(64),
        "file" / c.Bytes(128),
    ),
    Header,
)

OPTION: Final = c.Struct(
    "code" / c.Int8ub, "data" / c.If((c.this.code != PAD) & (c.this.code != END), c.Prefixed(c.Int8ub, c.GreedyBytes))
)
MESSAGE: Final = c.Struct("header" / HEADER.declaration, "cookie" / c.Const(COOKIE), "options" / c.GreedyRange(OPTION))
"""A message, for generators and the tests' comparison; network bytes go to `parse_untrusted`."""

_ZERO: Final = bytes(4)


class Message(NamedTuple):
    """The fixed part and the options by code, a code that came in several pieces joined (RFC 3396).

    What an option holds is not looked at while parsing: the properties do, and are None where the length is wrong.
    """

    header: Header
    options: Mapping[int, bytes]

    @property
    def mac(self) -> bytes:
        """The client's hardware address: the part of ``chaddr`` that counts."""
        return self.header.chaddr[: self.header.hlen]

    @property
    def message_type(self) -> int | None:
        """DISCOVER to INFORM; None in a BOOTP message."""
        return self._number(OPT_MESSAGE_TYPE, 1)

    @property
    def requested_address(self) -> bytes | None:
        """4 bytes."""
        return self._exactly(OPT_REQUESTED_ADDRESS, 4)

    @property
    def server_id(self) -> bytes | None:
        """4 bytes."""
        return self._exactly(OPT_SERVER_ID, 4)

    @property
    def lease_seconds(self) -> int | None:
        """0xffffffff is infinity."""
        return self._number(OPT_LEASE_SECONDS, 4)

    @property
    def max_message_bytes(self) -> int | None:
        """The longest message that the client takes."""
        return self._number(OPT_MAX_MESSAGE, 2)

    @property
    def parameter_list(self) -> bytes:
        """The codes that the client asks for; b"" when it does not say."""
        return self.options.get(OPT_PARAMETER_LIST, b"")

    @property
    def client_id(self) -> bytes:
        """What names the client: option 61, or its hardware address (RFC 2131 section 2)."""
        return self.options.get(OPT_CLIENT_ID) or bytes((self.header.htype,)) + self.mac

    def addresses(self, code: int) -> tuple[bytes, ...]:
        """Option ``code`` as addresses of 4 bytes; an incomplete last one is left out."""
        data = self.options.get(code, b"")
        return tuple(data[at : at + 4] for at in range(0, len(data) - 3, 4))

    def _exactly(self, code: int, length: int) -> bytes | None:
        data = self.options.get(code)
        return data if data is not None and len(data) == length else None

    def _number(self, code: int, length: int) -> int | None:
        data = self._exactly(code, length)
        return None if data is None else int.from_bytes(data, "big")


def parse_untrusted(data: bytes, counters: Counters) -> Message | None:
    """The message that is the whole of a UDP payload.

    Options end at END or with the message; what follows END is not looked at. Option 52 lets them continue in ``file``
    and ``sname`` (RFC 2131 section 4.1).

    Returns:
        None when it is shorter than 240 bytes (`dhcp.short`), has another cookie (`dhcp.bad_cookie`), a hardware
        address above 16 bytes (`dhcp.bad_hardware_address`), or an option that passes the end (`dhcp.bad_option`).
    """
    header = HEADER.unpack_untrusted(data)
    start = HEADER.size + len(COOKIE)
    reason = ""
    if header is None or len(data) < start:
        reason = "dhcp.short"
    elif data[HEADER.size : start] != COOKIE:
        reason = "dhcp.bad_cookie"
    elif header.hlen > MAX_CHADDR:
        reason = "dhcp.bad_hardware_address"
    else:
        try:
            return Message(header, _read_all_options(header, data[start:]))
        except WireError as error:
            reason = error.reason
    counters.bump(reason)
    return None


def _read_all_options(header: Header, area: bytes) -> dict[int, bytes]:
    options: dict[int, bytes] = {}
    _read_options(area, options)
    overload = options.get(OPT_OVERLOAD, b"")
    if len(overload) == 1 and overload[0] & 1:
        _read_options(header.file, options)
    if len(overload) == 1 and overload[0] & 2:
        _read_options(header.sname, options)
    return options


def _read_options(area: bytes, options: dict[int, bytes]) -> None:
    at = 0
    while at < len(area):
        code = area[at]
        at += 1
        if code == PAD:
            continue
        if code == END:
            return
        if at == len(area) or at + 1 + area[at] > len(area):
            raise WireError("dhcp.bad_option")
        end = at + 1 + area[at]
        options[code] = options.get(code, b"") + area[at + 1 : end]
        at = end


def build(message: Message) -> bytes:
    """The bytes of ``message``: options in their mapping's order, long ones in pieces, END, padded to 300 bytes.

    Raises:
        struct.error: a number does not fit in its field.
    """
    parts = [HEADER.struct.pack(*message.header), COOKIE]
    for code, data in message.options.items():
        for at in range(0, len(data) or 1, 255):
            piece = data[at : at + 255]
            parts.append(bytes((code, len(piece))) + piece)
    parts.append(bytes((END,)))
    return b"".join(parts).ljust(MIN_MESSAGE_BYTES, b"\0")


def request(mac: bytes, xid: int, options: Mapping[int, bytes], *, ciaddr: bytes = _ZERO, flags: int = 0) -> Message:
    """A client's message; its type is among the ``options``."""
    chaddr = mac.ljust(MAX_CHADDR, b"\0")
    header = Header(
        op=BOOTREQUEST, htype=1, hlen=len(mac), hops=0, xid=xid, secs=0, flags=flags, ciaddr=ciaddr, yiaddr=_ZERO,
        siaddr=_ZERO, giaddr=_ZERO, chaddr=chaddr, sname=bytes(64), file=bytes(128),
    )  # fmt: skip
    return Message(header, options)


def reply(
    to: Header, options: Mapping[int, bytes], *, yiaddr: bytes = _ZERO, siaddr: bytes = _ZERO, file: bytes = b""
) -> Message:
    """A server's message in answer to ``to``, which gives xid, flags, giaddr and chaddr (RFC 2131 table 3).

    ``file`` is the boot file's name, at most 127 bytes.
    """
    header = to._replace(
        op=BOOTREPLY, hops=0, secs=0, yiaddr=yiaddr, siaddr=siaddr, sname=bytes(64), file=file[:127].ljust(128, b"\0")
    )
    return Message(header, options)


def encode_number(value: int, length: int) -> bytes:
    """Of 1 byte a message type, of 2 an MTU, of 4 a number of seconds."""
    return value.to_bytes(length, "big")


def encode_domain_search(domains: Iterable[str]) -> bytes:
    """Option 119, without the compression that it allows.

    Raises:
        ValueError: one of them is not a domain name.
    """
    return b"".join(map(dns.name_from_text, domains))


def decode_domain_search_untrusted(data: bytes) -> tuple[dns.Name, ...] | None:
    """Option 119: the names, None when they are malformed (RFC 3397 section 2)."""
    names = []
    at = 0
    try:
        while at < len(data):
            name, at = dns.read_name_untrusted(data, at)
            names.append(name)
    except WireError:
        return None
    return tuple(names)


class Route(NamedTuple):
    """A classless static route: to ``network``/``prefix_len`` through ``router`` (4 bytes each)."""

    network: bytes
    prefix_len: int
    router: bytes


def encode_routes(routes: Iterable[Route]) -> bytes:
    """Option 121 (RFC 3442): of each network only the octets that its prefix covers."""
    return b"".join([bytes((plen,)) + network[: (plen + 7) // 8] + router for network, plen, router in routes])


def decode_routes_untrusted(data: bytes) -> tuple[Route, ...] | None:
    """Option 121, None when it is malformed."""
    routes = []
    at = 0
    while at < len(data):
        plen = data[at]
        octets = (plen + 7) // 8
        end = at + 1 + octets + 4
        if plen > 32 or end > len(data):
            return None
        routes.append(Route(data[at + 1 : at + 1 + octets].ljust(4, b"\0"), plen, data[end - 4 : end]))
        at = end
    return tuple(routes)
