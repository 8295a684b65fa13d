"""Every frame of every capture in tests/vectors, as we, scapy, tshark and tcpdump understand it."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pystack.counters import Counters
from pystack.wire import arp, dhcp, dns, icmp, icmpv6, ipv4, ipv6, ndp, pretty, tcp, tftp, vlan
from pystack.wire.packet import Packet, parse_general_untrusted, parse_untrusted, verify_untrusted
from tests.vectors import HERE, captures, frames

CAPTURES = captures()
each_capture = pytest.mark.parametrize("path", CAPTURES, ids=[path.name for path in CAPTURES])
each_intact_capture = pytest.mark.parametrize(
    "path", [path for path in CAPTURES if path.name != "broken.pcap"], ids=lambda path: path.name
)


def parse(frame: bytes) -> Packet:
    packet = parse_untrusted(frame, 0, Counters())
    assert packet is not None
    return packet


def state(packet: Packet | None) -> object:
    return packet and {name: getattr(packet, name) for name in Packet.__slots__}


# ------------------------------------------------------------------------------------------------------------ ourselves


def test_there_are_captures_of_both_kinds() -> None:
    assert {path.name for path in CAPTURES} >= {"crafted.pcap", "broken.pcap", "linux.pcap", "linux.pcapng"}
    assert frames(HERE / "linux.pcapng") == frames(HERE / "linux.pcap")[:100]


@each_intact_capture
def test_every_frame_is_parsed_and_its_checksums_are_right(path: Path) -> None:
    for number, frame in enumerate(frames(path), 1):
        counters = Counters()
        packet = parse_untrusted(frame, 0, counters)
        assert packet is not None, f"{path.name} {number}: {counters.snapshot()}"
        assert verify_untrusted(packet, counters, rx_checksum=False), f"{path.name} {number}: {counters.snapshot()}"


@each_capture
def test_the_shortcut_equals_the_general_path_behind_any_virtio_header(path: Path) -> None:
    for frame in frames(path):
        for length in (0, 10, 12):
            whole = bytes(length) + frame
            ours = parse_untrusted(whole, length, Counters())
            assert state(ours) == state(parse_general_untrusted(whole, length, Counters()))


@each_capture
def test_cut_anywhere_a_frame_is_refused_or_parsed_and_printed(path: Path) -> None:
    for frame in frames(path)[::7]:
        for end in range(min(len(frame), 160)):
            parse_untrusted(frame[:end], 0, Counters())
            assert pretty.line(frame[:end]).isprintable()


def test_what_is_crafted_comes_out_the_same_again() -> None:
    from tests.vectors import make

    assert frames(HERE / "crafted.pcap") == make.crafted()
    assert frames(HERE / "broken.pcap") == make.broken()


# ---------------------------------------------------------------------------------------------------------------- scapy


@each_intact_capture
def test_scapy_reads_the_same_fields(path: Path) -> None:
    from scapy.layers.inet import ICMP, IP, TCP, UDP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.ipsec import AH
    from scapy.layers.l2 import ARP, Dot1Q, Ether

    for number, frame in enumerate(frames(path), 1):
        packet, theirs = parse(frame), Ether(frame)
        where = f"{path.name} {number}"
        assert (packet.src_mac().hex(":"), packet.dst_mac().hex(":")) == (theirs.src, theirs.dst), where
        if packet.tags:
            assert [tag.vid for tag in vlan.read_tags_untrusted(frame)][-1:] == [_innermost(theirs, Dot1Q).vlan], where
        if packet.version == 4:
            _compare_ipv4(packet, theirs[IP], where)
        elif packet.version == 6:
            _compare_ipv6(packet, theirs[IPv6], where)
        elif theirs.haslayer(ARP):
            message = arp.parse_untrusted(frame, packet.l3, packet.end, Counters())
            assert message is not None, where
            assert (message.op, ipv4.text(message.spa), ipv4.text(message.tpa)) == (
                theirs[ARP].op, theirs[ARP].psrc, theirs[ARP].pdst,
            ), where  # fmt: skip
        if packet.key and packet.proto == 6:
            _compare_tcp(packet, theirs[TCP], where)
        elif packet.key and not theirs.haslayer(AH):  # scapy stops there
            udp = theirs[UDP]
            assert (packet.sport, packet.dport, packet.payload_len) == (udp.sport, udp.dport, udp.len - 8), where
        elif packet.proto == 1 and not packet.is_fragment:
            control = icmp.parse_untrusted(frame, packet.l4, packet.end, Counters())
            assert control is not None, where
            assert (control.kind, control.code) == (theirs[ICMP].type, theirs[ICMP].code), where


def _innermost(theirs: Any, layer: Any) -> Any:
    found = theirs[layer]
    while found.payload.haslayer(layer):
        found = found.payload[layer]
    return found


def _compare_ipv4(packet: Packet, theirs: Any, where: str) -> None:
    assert (ipv4.text(packet.src), ipv4.text(packet.dst)) == (theirs.src, theirs.dst), where
    assert (packet.ttl, packet.proto, packet.tos, packet.ident) == (theirs.ttl, theirs.proto, theirs.tos, theirs.id)
    assert packet.frag == int(theirs.flags) << 13 | theirs.frag, where
    assert (packet.l4 - packet.l3, packet.end - packet.l3) == (theirs.ihl * 4, theirs.len) or packet.proto == 17, where


def _compare_ipv6(packet: Packet, theirs: Any, where: str) -> None:
    assert (ipv6.text(packet.src), ipv6.text(packet.dst)) == (theirs.src, theirs.dst), where
    assert (packet.ttl, packet.tos) == (theirs.hlim, theirs.tc), where
    chain = [kind for kind, *_ in ipv6.walk_untrusted(packet)]
    assert chain[:1] in ([], [theirs.nh]), where


def _compare_tcp(packet: Packet, theirs: Any, where: str) -> None:
    assert (packet.sport, packet.dport, packet.seq, packet.ack) == (theirs.sport, theirs.dport, theirs.seq, theirs.ack)
    assert (packet.flags, packet.window, packet.urgent) == (int(theirs.flags), theirs.window, theirs.urgptr), where
    options = tcp.parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, Counters())
    named = dict(theirs.options)
    assert options.mss == named.get("MSS"), where
    assert options.window_scale == named.get("WScale"), where
    assert options.sack_permitted == ("SAckOK" in named), where
    assert options.timestamps == named.get("Timestamp"), where
    assert [edge for block in options.sack for edge in block] == list(named.get("SAck", ())), where


# --------------------------------------------------------------------------------------------------------------- tshark

FIELDS = re.findall(
    r"\S+",
    """
    frame.protocols eth.src eth.dst ip.version ip.src ip.dst ip.ttl ip.proto ip.id ip.frag_offset ip.flags.mf ip.len
    ipv6.src ipv6.dst ipv6.hlim ipv6.plen tcp.srcport tcp.dstport tcp.seq_raw tcp.ack_raw tcp.flags
    tcp.window_size_value tcp.urgent_pointer tcp.len tcp.options.mss_val tcp.options.wscale.shift
    tcp.options.timestamp.tsval tcp.options.timestamp.tsecr tcp.options.sack_le udp.srcport udp.dstport udp.length
    icmp.type icmp.code icmp.ident icmp.seq icmpv6.type icmpv6.nd.ns.target_address icmpv6.nd.na.target_address
    arp.opcode arp.src.proto_ipv4 arp.dst.proto_ipv4 arp.src.hw_mac dns.id dns.qry.name dns.flags.rcode
    dns.count.answers dhcp.option.dhcp dhcp.id dhcp.ip.your dhcp.option.requested_ip_address dhcp.option.hostname
    tftp.opcode tftp.source_file tftp.block vlan.id vlan.priority
    """,
)


def tshark(path: Path) -> Iterator[dict[str, str]]:
    """What tshark finds in each frame: the first occurrence of each field."""
    command = ["tshark", "-n", "-r", str(path), "-T", "fields", "-E", "occurrence=f", "-E", "separator=/t"]
    for preference in ("ip.defragment", "ipv6.defragment", "tcp.desegment_tcp_streams", "tcp.analyze_sequence_numbers"):
        command += ["-o", f"{preference}:FALSE"]
    for field in FIELDS:
        command += ["-e", field]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    for row in output.splitlines():
        yield dict(zip(FIELDS, row.split("\t"), strict=True))


def text(number: int | None) -> str:
    return "" if number is None else str(number)


@pytest.mark.requires("tshark")
@each_intact_capture
def test_tshark_reads_the_same_fields(path: Path) -> None:
    found = list(tshark(path))
    contents = frames(path)
    assert len(found) == len(contents)
    for number, (frame, theirs) in enumerate(zip(contents, found, strict=True), 1):
        ours = {name: value for name, value in _our_fields(parse(frame)).items() if value is not None}
        assert ours == {name: theirs[name] for name in ours}, f"{path.name} {number}: {theirs['frame.protocols']}"


def _our_fields(packet: Packet) -> dict[str, str | None]:
    """In tshark's names and notation; None where the one of a quoted packet could stand first."""
    fields: dict[str, str | None] = {"eth.src": packet.src_mac().hex(":"), "eth.dst": packet.dst_mac().hex(":")}
    if packet.tags:
        outer = vlan.read_tags_untrusted(packet.frame)[-1]
        fields |= {"vlan.id": text(outer.vid), "vlan.priority": text(outer.pcp)}
    if packet.version == 4:
        fields |= {
            "ip.version": "4", "ip.src": ipv4.text(packet.src), "ip.dst": ipv4.text(packet.dst),
            "ip.ttl": text(packet.ttl), "ip.proto": text(packet.proto), "ip.id": f"0x{packet.ident:04x}",
            "ip.frag_offset": text(packet.frag & 0x1FFF), "ip.flags.mf": text(packet.frag >> 13 & 1),
        }  # fmt: skip
        if packet.proto != 17:
            fields["ip.len"] = text(packet.end - packet.l3)
    elif packet.version == 6:
        fields |= {
            "ipv6.src": ipv6.text(packet.src), "ipv6.dst": ipv6.text(packet.dst), "ipv6.hlim": text(packet.ttl),
        }  # fmt: skip
    else:
        message = arp.parse_untrusted(packet.frame, packet.l3, packet.end, Counters())
        assert message is not None
        fields |= {
            "arp.opcode": text(message.op), "arp.src.hw_mac": message.sha.hex(":"),
            "arp.src.proto_ipv4": ipv4.text(message.spa), "arp.dst.proto_ipv4": ipv4.text(message.tpa),
        }  # fmt: skip
    if packet.is_fragment:
        return fields
    if packet.key:
        fields |= _tcp_fields(packet) if packet.proto == 6 else _udp_fields(packet)
    elif packet.proto == 1 and packet.version == 4:
        fields |= _icmp_fields(packet)
    elif packet.proto == 58:
        fields |= _icmpv6_fields(packet)
    return fields


def _tcp_fields(packet: Packet) -> dict[str, str | None]:
    options = tcp.parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, Counters())
    value, echo = options.timestamps or (None, None)
    return {
        "tcp.srcport": text(packet.sport), "tcp.dstport": text(packet.dport), "tcp.seq_raw": text(packet.seq),
        "tcp.ack_raw": text(packet.ack), "tcp.flags": f"0x{packet.flags:04x}", "tcp.len": text(packet.payload_len),
        "tcp.window_size_value": text(packet.window), "tcp.urgent_pointer": text(packet.urgent),
        "tcp.options.mss_val": text(options.mss), "tcp.options.wscale.shift": text(options.window_scale),
        "tcp.options.timestamp.tsval": text(value), "tcp.options.timestamp.tsecr": text(echo),
        "tcp.options.sack_le": text(options.sack[0][0] if options.sack else None),
    }  # fmt: skip


def _udp_fields(packet: Packet) -> dict[str, str | None]:
    fields: dict[str, str | None] = {
        "udp.srcport": text(packet.sport), "udp.dstport": text(packet.dport),
        "udp.length": text(packet.end - packet.l4),
    }  # fmt: skip
    ports = {packet.sport, packet.dport}
    payload = packet.payload_bytes()
    if 53 in ports:
        message = dns.parse_untrusted(payload, Counters())
        assert message is not None
        fields |= {
            "dns.id": f"0x{message.header.ident:04x}", "dns.count.answers": text(len(message.answers)),
            "dns.qry.name": dns.name_text(message.questions[0].name).removesuffix("."),
        }  # fmt: skip
        if message.header.qr:
            fields["dns.flags.rcode"] = text(message.header.rcode)
    elif 67 in ports:
        lease = dhcp.parse_untrusted(payload, Counters())
        assert lease is not None
        asked = lease.requested_address
        fields |= {
            "dhcp.option.dhcp": text(lease.message_type), "dhcp.id": f"0x{lease.header.xid:08x}",
            "dhcp.ip.your": ipv4.text(lease.header.yiaddr),
            "dhcp.option.requested_ip_address": ipv4.text(asked) if asked else "",
            "dhcp.option.hostname": lease.options.get(dhcp.OPT_HOST_NAME, b"").decode(),
        }  # fmt: skip
    elif 69 in ports:
        transfer = tftp.parse_untrusted(payload, Counters())
        assert transfer is not None
        fields["tftp.opcode"] = text(payload[1])
        if isinstance(transfer, tftp.Request):
            fields["tftp.source_file"] = transfer.filename.decode()
        elif isinstance(transfer, tftp.Data | tftp.Ack):
            fields["tftp.block"] = text(transfer.block)
    return fields


def _icmp_fields(packet: Packet) -> dict[str, str | None]:
    message = icmp.parse_untrusted(packet.frame, packet.l4, packet.end, Counters())
    assert message is not None
    fields: dict[str, str | None] = {"icmp.type": text(message.kind), "icmp.code": text(message.code)}
    if message.kind in (icmp.ECHO_REQUEST, icmp.ECHO_REPLY):
        fields |= {"icmp.ident": text(message.ident), "icmp.seq": text(message.sequence)}
    return fields


def _icmpv6_fields(packet: Packet) -> dict[str, str | None]:
    message = icmpv6.parse_untrusted(packet.frame, packet.l4, packet.end, Counters())
    assert message is not None
    fields: dict[str, str | None] = {"icmpv6.type": text(message.kind)}
    found = ndp.parse_untrusted(packet, Counters()) if 133 <= message.kind <= 137 else None
    if isinstance(found, ndp.NeighbourSolicitation):
        fields["icmpv6.nd.ns.target_address"] = ipv6.text(found.target)
    elif isinstance(found, ndp.NeighbourAdvertisement):
        fields["icmpv6.nd.na.target_address"] = ipv6.text(found.target)
    return fields


@pytest.mark.requires("tshark")
@each_intact_capture
def test_the_printer_states_what_tshark_reads(path: Path) -> None:
    for frame, theirs in zip(frames(path), tshark(path), strict=True):
        packet, line = parse(frame), pretty.line(frame)
        if theirs["arp.opcode"]:
            assert theirs["arp.src.proto_ipv4"] in line
            continue
        src, dst = theirs["ip.src"] or theirs["ipv6.src"], theirs["ip.dst"] or theirs["ipv6.dst"]
        if packet.key:
            layer = "tcp" if packet.proto == 6 else "udp"
            assert f" {src}.{theirs[f'{layer}.srcport']} > {dst}.{theirs[f'{layer}.dstport']}: " in line
        else:
            assert f" {src} > {dst}: " in line
        if packet.key and packet.proto == 6:
            facts = re.search(r"Flags \[(.*?)\](?:, seq (\d+).*?)?(?:, ack (\d+))?, win (\d+).*, length (\d+)$", line)
            assert facts is not None
            assert facts[2] in (None, theirs["tcp.seq_raw"])
            assert facts[3] in (None, theirs["tcp.ack_raw"])
            assert (facts[4], facts[5]) == (theirs["tcp.window_size_value"], theirs["tcp.len"])
            assert facts[1] == pretty.flags_text(int(theirs["tcp.flags"], 16))


# -------------------------------------------------------------------------------------------------------------- tcpdump


@pytest.mark.requires("tcpdump")
@each_intact_capture
def test_tcpdump_prints_the_same_line(path: Path, tmp_path: Path) -> None:
    """Word for word, but for what we add: tags, fragments, the contents of DHCP; extension headers it writes apart."""
    copy = tmp_path / path.name  # tcpdump may have dropped its privileges when it opens the file
    copy.write_bytes(path.read_bytes())
    copy.chmod(0o644)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_uid == os.geteuid():
            folder.chmod(folder.stat().st_mode | 0o011)
    command = ["tcpdump", "-n", "-t", "-S", "-r", str(copy)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    theirs = [" ".join(row.split()) for row in output.splitlines()]
    compared = 0
    for frame, row in zip(frames(path), theirs, strict=True):
        packet = parse(frame)
        if packet.is_fragment or packet.tags or ipv6.walk_untrusted(packet):
            continue
        ours = re.sub(r"(BOOTP/DHCP, .*, length \d+): .*", r"\1", pretty.line(frame))
        assert ours.replace(" no next header 0", " no next header") == row
        compared += 1
    assert compared > 50
