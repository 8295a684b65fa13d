"""Every layout derived from construct reads and writes exactly what construct does."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any, NamedTuple

import construct as c
import pytest
from hypothesis import given
from hypothesis import strategies as st

import pystack.wire
from pystack.wire import ethernet, ipv4, ipv6, packet, tcp, udp, vnet
from pystack.wire.layout import Layout
from tests.property.wire.strategies import fields_of


def _layouts() -> dict[str, Layout[Any]]:
    """Every `Layout` of every module of pystack.wire."""
    found = {}
    for info in pkgutil.iter_modules(pystack.wire.__path__):
        module = importlib.import_module(f"pystack.wire.{info.name}")
        for name, value in vars(module).items():
            if isinstance(value, Layout):
                found[f"{info.name}.{name}"] = value
    return found


LAYOUTS = _layouts()
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def test_every_header_has_a_layout() -> None:
    headers = (
        "ethernet.HEADER vlan.TAG arp.HEADER ipv4.HEADER ipv6.HEADER icmp.HEADER icmpv6.HEADER udp.HEADER tcp.HEADER"
    )
    assert {*headers.split(), "dhcp.HEADER", "dns.HEADER", "vnet.HEADER"} <= set(LAYOUTS)


@every_layout
@given(data=st.data())
def test_unpacking_equals_constructs_parsing(layout: Layout[Any], data: st.DataObject) -> None:
    front = data.draw(st.binary(max_size=3))
    raw = data.draw(st.binary(min_size=layout.size, max_size=layout.size))
    value = layout.unpack_from(front + raw + b"tail", len(front))
    assert value == layout.flatten(layout.declaration.parse(raw))
    assert layout.unpack_untrusted(raw) == value
    assert layout.unpack_untrusted(raw[:-1]) is None
    assert layout.unpack_untrusted(raw + b"tail", 0, layout.size - 1) is None


@every_layout
@given(data=st.data())
def test_packing_equals_constructs_building(layout: Layout[Any], data: st.DataObject) -> None:
    value = data.draw(fields_of(layout))
    raw = layout.pack(**value._asdict())
    assert raw == layout.declaration.build(layout.nest(value))
    assert layout.unpack_from(raw) == value


@every_layout
def test_the_sizes_agree(layout: Layout[Any]) -> None:
    assert layout.size == layout.struct.size == layout.declaration.sizeof()


@every_layout
def test_packing_refuses_what_does_not_fit_or_is_missing(layout: Layout[Any]) -> None:
    value = layout.unpack_from(bytes(layout.size))._asdict()
    for name, where in layout.bits.items():
        with pytest.raises(ValueError, match=name):
            layout.pack(**{**value, name: where.mask + 1})
    first = layout.names[0]
    with pytest.raises(KeyError, match=first):
        layout.pack(**{name: number for name, number in value.items() if name != first})


@given(st.binary(min_size=54, max_size=54))
def test_the_one_pass_reads_the_declared_headers(frame: bytes) -> None:
    """The hot path's own `struct` forms, written out because importing them must not import construct."""
    ip, segment = ipv4.HEADER.struct, tcp.HEADER.struct
    first, tos, total, ident, frag, ttl, proto, check, src, dst = ip.unpack_from(frame, 14)
    assert packet._IPV4.unpack_from(frame, 14) == (first, tos, total, ident, frag, ttl, proto, check, src, dst)
    sport, dport, seq, ack, word, window, tcp_check, urgent = segment.unpack_from(frame, 34)
    expected = (sport, dport, seq, ack, word >> 8, word & 0xFF, window, tcp_check, urgent)
    assert packet._TCP.unpack_from(frame, 34) == expected
    ethertype = ethernet.HEADER.unpack_from(frame).ethertype
    assert packet._FAST.unpack_from(frame, 12) == (ethertype, *packet._IPV4.unpack_from(frame, 14), *expected)
    assert packet._UDP.unpack_from(frame) == udp.HEADER.unpack_from(frame)
    assert packet._VNET.unpack_from(frame) == vnet.HEADER.unpack_from(frame)
    assert packet._IPV6.unpack_from(frame) == ipv6.HEADER.struct.unpack_from(frame)


class _Pair(NamedTuple):
    a: int
    b: int


class _One(NamedTuple):
    a: int


def test_deriving_refuses_mixed_byte_orders() -> None:
    with pytest.raises(ValueError, match="byte order"):
        Layout.derive(c.Struct("a" / c.Int16ub, "b" / c.Int16ul), _Pair)


def test_deriving_refuses_what_has_no_fixed_size() -> None:
    with pytest.raises(ValueError, match="no fast form for 'a'"):
        Layout.derive(c.Struct("a" / c.GreedyBytes), _One)


def test_deriving_refuses_bits_that_are_no_word() -> None:
    with pytest.raises(ValueError, match="24 bits"):
        Layout.derive(c.Struct("bits" / c.BitStruct("a" / c.BitsInteger(20), "b" / c.BitsInteger(4))), _Pair)


def test_deriving_refuses_other_names_than_the_values() -> None:
    with pytest.raises(ValueError, match="_One"):
        Layout.derive(c.Struct("b" / c.Int8ub), _One)


def test_padding_and_nested_structs_are_flattened() -> None:
    declaration = c.Struct(
        "a" / c.Int8ub,
        c.Padding(2),
        "inner" / c.Struct("bits" / c.BitStruct(c.Padding(5), "b" / c.BitsInteger(3))),
    )
    layout = Layout.derive(declaration, _Pair)
    assert layout.unpack_from(b"\x07\xff\xff\x15") == _Pair(7, 5)
    assert layout.pack(a=7, b=5) == b"\x07\0\0\x05" == declaration.build(layout.nest(_Pair(7, 5)))
