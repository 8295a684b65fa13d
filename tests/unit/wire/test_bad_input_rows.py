"""Every row of `bad_input_rows` at the level of the parsers: refused, counted by its one counter, never raised."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pystack.counters import Counters
from pystack.wire import arp, dhcp, dns, icmp, ipv4, ndp, pretty, tcp, tftp
from pystack.wire.packet import Packet, parse_untrusted, verify_untrusted
from tests.unit.wire.bad_input_rows import ROWS, Row


def _icmp(packet: Packet, counters: Counters) -> None:
    message = icmp.parse_untrusted(packet.frame, packet.l4, packet.end, counters)
    if message:
        icmp.parse_quote_untrusted(packet.frame, message.start, message.end, counters)


def _tcp_options(packet: Packet, counters: Counters) -> None:
    tcp.parse_options_untrusted(packet.frame, packet.l4 + 20, packet.payload, counters)


READERS: dict[str, Callable[[Packet, Counters], object]] = {
    "": lambda *_: None,
    "arp": lambda packet, counters: arp.parse_untrusted(packet.frame, packet.l3, packet.end, counters),
    "ipv4_options": lambda packet, counters: ipv4.parse_options_untrusted(
        packet.frame, packet.l3 + 20, packet.l4, counters
    ),
    "tcp_options": _tcp_options,
    "icmp": _icmp,
    "dhcp": lambda packet, counters: dhcp.parse_untrusted(packet.payload_bytes(), counters),
    "dns": lambda packet, counters: dns.parse_untrusted(packet.payload_bytes(), counters),
    "tftp": lambda packet, counters: tftp.parse_untrusted(packet.payload_bytes(), counters),
    "ndp": ndp.parse_untrusted,
}


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
@pytest.mark.parametrize("vnet_hdr_len", [0, 10, 12])
def test_bad_input_moves_its_counter_once_and_no_other(row: Row, vnet_hdr_len: int) -> None:
    counters = Counters()
    packet = parse_untrusted(bytes(vnet_hdr_len) + row.build(), vnet_hdr_len, counters)
    if packet is not None and verify_untrusted(packet, counters, rx_checksum=False):
        READERS[row.reader](packet, counters)
    else:
        assert row.reader == "", "the row names a reader that never saw it"
    assert counters.snapshot() == {row.counter: 1}


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_bad_input_is_printed_with_its_reason_or_as_what_it_says(row: Row) -> None:
    text = pretty.line(row.build(), checksums=True)
    assert text.isprintable()
    if not row.reader:
        assert f"[{row.counter}]" in text


def test_row_names_are_unique() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
