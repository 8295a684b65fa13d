"""What a line says about UDP and the protocols on it that the gateway speaks: part of `pystack.wire.pretty`."""

from __future__ import annotations

import struct
from typing import Final

from pystack.counters import Counters
from pystack.wire import dhcp, dns, ethernet, ipv4, ipv6, tftp
from pystack.wire.packet import Packet

_DNS_PORTS: Final = frozenset((dns.PORT, 5353))
_DHCP_PORTS: Final = frozenset((dhcp.SERVER_PORT, dhcp.CLIENT_PORT))
_TFTP_PORT: Final = 69

_TFTP_ERRORS: Final = {
    tftp.NOT_DEFINED: "EUNDEF", tftp.FILE_NOT_FOUND: "ENOTFOUND", tftp.ACCESS_VIOLATION: "EACCESS", 3: "ENOSPACE",
    tftp.ILLEGAL_OPERATION: "EBADOP", tftp.UNKNOWN_TRANSFER: "EBADID", 6: "EEXISTS", 7: "ENOUSER",
}  # fmt: skip

_MAX_RECORDS: Final = 16
_MAX_TEXT: Final = 128

_DNS_OPCODES: Final = {0: "", 1: " inv_q", 2: " stat", 4: " notify", 5: " update"}
_DNS_RCODES: Final = {
    dns.NOERROR: "", dns.FORMERR: " FormErr", dns.SERVFAIL: " ServFail", dns.NXDOMAIN: " NXDomain",
    dns.NOTIMP: " NotImp", dns.REFUSED: " Refused",
}  # fmt: skip


def printable(data: bytes) -> str:
    r"""Text from the network for a terminal: what is not printable ASCII as ``\xNN``, cut at 128 bytes."""
    text = "".join([chr(byte) if 0x20 <= byte <= 0x7E else f"\\x{byte:02x}" for byte in data[:_MAX_TEXT]])
    return text + "..." * (len(data) > _MAX_TEXT)


def describe(packet: Packet) -> str:
    """The rest of the line after the addresses and ports."""
    ports = {packet.sport, packet.dport}
    payload = packet.payload_bytes()
    if ports & _DNS_PORTS:
        return _dns(payload)
    if ports & _DHCP_PORTS and packet.version == 4:
        return _dhcp(payload)
    if _TFTP_PORT in ports:
        return _tftp(payload)
    return f"UDP, length {len(payload)}"


def _dns(payload: bytes) -> str:
    counters = Counters()
    message = dns.parse_untrusted(payload, counters)
    if message is None:
        (reason,) = counters.snapshot()
        return f"[{reason}] ({len(payload)})"
    header = message.header
    text = f"{header.ident}{_DNS_OPCODES.get(header.opcode, f' op{header.opcode}')}"
    if header.qr:
        text += _DNS_RCODES.get(header.rcode, f" Resp{header.rcode}")
        text += "*" * header.aa + "-" * (not header.ra) + "|" * header.tc + "$" * header.ad
        text += f" [{header.qdcount}q]" if header.qdcount != 1 else ""
        text += f" {header.ancount}/{header.nscount}/{header.arcount}"
        shown = [f" {_record(record)}" for record in message.answers[:_MAX_RECORDS]]
        text += ",".join(shown) + " ..." * (len(message.answers) > _MAX_RECORDS)
    else:
        text += "+" * header.rd + "%" * header.cd
        text += f" [{header.qdcount}q]" if header.qdcount != 1 else ""
        others = ((header.ancount, "a"), (header.nscount, "n"), (header.arcount, "au"))
        text += "".join([f" [{count}{name}]" for count, name in others if count])
        text += "".join([f" {_question(question)}" for question in message.questions[:_MAX_RECORDS]])
    return f"{text} ({len(payload)})"


def _type(number: int) -> str:
    return dns.TYPE_NAMES.get(number, f"Type{number}")


def _question(question: dns.Question) -> str:
    return f"{_type(question.qtype)}? {dns.name_text(question.name)}"


def _record(record: dns.Record) -> str:
    return f"{_type(record.rtype)}{_rdata(record)}"


def _rdata(record: dns.Record) -> str:
    data = record.rdata
    match record.rtype:
        case dns.A if len(data) == 4:
            return f" {ipv4.text(data)}"
        case dns.AAAA if len(data) == 16:
            return f" {ipv6.text(data)}"
        case dns.NS | dns.CNAME | dns.PTR:
            return f" {dns.name_text(data)}"
        case dns.MX:
            return f" {dns.name_text(data[2:])} {int.from_bytes(data[:2], 'big')}"
        case dns.SRV:
            priority, weight, port = struct.unpack_from("!HHH", data)
            return f" {dns.name_text(data[6:])}:{port} {priority} {weight}"
        case dns.TXT:
            return f' "{printable(data[1:])}"'
    return ""


def _dhcp(payload: bytes) -> str:
    counters = Counters()
    message = dhcp.parse_untrusted(payload, counters)
    if message is None:
        (reason,) = counters.snapshot()
        return f"BOOTP/DHCP, length {len(payload)} [{reason}]"
    if message.header.op == dhcp.BOOTREQUEST:
        what = f"Request from {ethernet.mac_text(message.mac)}" if message.mac else "Request"
    else:
        what = "Reply"
    parts = [dhcp.TYPE_NAMES.get(message.message_type or 0, "")]
    if any(message.header.yiaddr):
        parts.append(f"your {ipv4.text(message.header.yiaddr)}")
    if message.requested_address:
        parts.append(f"requested {ipv4.text(message.requested_address)}")
    if message.server_id:
        parts.append(f"server {ipv4.text(message.server_id)}")
    if message.lease_seconds is not None:
        parts.append(f"lease {message.lease_seconds}")
    if name := message.options.get(dhcp.OPT_HOST_NAME):
        parts.append(f'host "{printable(name)}"')
    details = ", ".join(filter(None, parts))
    return f"BOOTP/DHCP, {what}, length {len(payload)}" + (f": {details}" if details else "")


def _tftp(payload: bytes) -> str:
    counters = Counters()
    message = tftp.parse_untrusted(payload, counters)
    head = f"TFTP, length {len(payload)}"
    match message:
        case tftp.Request(opcode, filename, mode, options):
            name = "RRQ" if opcode == tftp.RRQ else "WRQ"
            return f'{head}, {name} "{printable(filename)}" {printable(mode)}{_tftp_options(options)}'
        case tftp.Data(block, _):
            return f"{head}, DATA block {block}"
        case tftp.Ack(block):
            return f"{head}, ACK block {block}"
        case tftp.Error(code, text):
            return f'{head}, ERROR {_TFTP_ERRORS.get(code, code)} "{printable(text)}"'
        case tftp.Oack(options):
            return f"{head}, OACK{_tftp_options(options)}"
        case None:
            (reason,) = counters.snapshot()
            return f"{head} [{reason}]"


def _tftp_options(options: tuple[tuple[bytes, bytes], ...]) -> str:
    return "".join([f" {printable(name)} {printable(value)}" for name, value in options])
