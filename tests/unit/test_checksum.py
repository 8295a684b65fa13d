"""The Internet checksum against a loop over words (RFC 1071), and updates in place (RFC 1624)."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from pystack.wire import checksum


def naive(data: bytes) -> int:
    """RFC 1071 section 4.1, as everybody writes it."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) & 1)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_example_of_rfc_1071() -> None:
    data = bytes.fromhex("0001f203f4f5f6f7")
    assert checksum.sum16(data) == 0xDDF2
    assert checksum.finish(checksum.sum16(data)) == 0x220D


@given(st.binary(min_size=1, max_size=3000))
def test_equals_the_loop_over_words(data: bytes) -> None:
    field = checksum.finish(checksum.sum16(data))
    assert field % 0xFFFF == naive(data) % 0xFFFF
    assert checksum.valid(data + bytes(len(data) & 1) + field.to_bytes(2, "big"))


@given(st.binary(min_size=2, max_size=100), st.integers(0, 799))
def test_a_flipped_bit_is_found(data: bytes, bit: int) -> None:
    data += bytes(len(data) & 1)
    whole = bytearray(data + checksum.finish(checksum.sum16(data)).to_bytes(2, "big"))
    bit %= 8 * len(whole)
    whole[bit >> 3] ^= 0x80 >> (bit & 7)
    assert not checksum.valid(bytes(whole))


@given(st.lists(st.binary(max_size=50), max_size=12))
def test_sum_of_buffers_is_the_sum_of_the_joined_bytes(pieces: list[bytes]) -> None:
    assert checksum.sum_buffers(pieces) == checksum.sum16(b"".join(pieces))
    assert checksum.sum_buffers([memoryview(piece) for piece in pieces]) == checksum.sum16(b"".join(pieces))


@given(st.binary(min_size=20, max_size=60), st.integers(0, 9), st.integers(0, 0xFFFF))
def test_update_in_place_equals_computing_anew(data: bytes, index: int, new: int) -> None:
    data += bytes(len(data) & 1)
    before = checksum.finish(checksum.sum16(data))
    (old,) = struct.unpack_from("!H", data, 2 * index)
    changed = data[: 2 * index] + new.to_bytes(2, "big") + data[2 * index + 2 :]
    assert checksum.update(before, old, new) == checksum.finish(checksum.sum16(changed))


@given(st.binary(min_size=12, max_size=12), st.integers(0, 0xFFFF_FFFF))
def test_update_takes_words_of_32_bits(data: bytes, new: int) -> None:
    old = int.from_bytes(data[4:8], "big")
    changed = data[:4] + new.to_bytes(4, "big") + data[8:]
    before = checksum.finish(checksum.sum16(data))
    assert checksum.update(before, old, new) == checksum.finish(checksum.sum16(changed))


@given(
    st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.integers(0, 255), st.integers(0, 65_535)
)
def test_pseudo_header_of_ipv4(src: bytes, dst: bytes, protocol: int, length: int) -> None:
    header = src + dst + struct.pack("!BBH", 0, protocol, length)
    assert checksum.fold(checksum.pseudo(src, dst, protocol, length)) == checksum.sum16(header)


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=16, max_size=16), st.integers(0, 1 << 20))
def test_pseudo_header_of_ipv6(src: bytes, dst: bytes, length: int) -> None:
    header = src + dst + struct.pack("!IHBB", length, 0, 0, 58)
    assert checksum.fold(checksum.pseudo(src, dst, 58, length)) == checksum.sum16(header)


def test_udp_never_sends_zero() -> None:
    assert checksum.finish_udp(0) == 0xFFFF
    assert checksum.finish_udp(1) == 0xFFFE
