"""The checksum equals RFC 1071's loop over words, and RFC 1624's update equals computing it anew."""

from __future__ import annotations

import struct
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pystack.wire import checksum


def by_words(data: bytes) -> int:
    """RFC 1071's definition, word by word."""
    total = 0
    for (word,) in struct.iter_unpack("!H", data + bytes(len(data) % 2)):
        total += word
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.binary(max_size=200))
def test_the_sum_equals_the_loop_over_words(data: bytes) -> None:
    field = checksum.finish(checksum.sum16(data))
    # 0 and 0xffff are two forms of one number.
    assert field % 0xFFFF == by_words(data) % 0xFFFF
    if len(data) % 2 == 0:
        assert checksum.valid(data + field.to_bytes(2, "big"))


@given(st.binary(min_size=1, max_size=40), st.integers(1000, 5000))
def test_the_sum_of_long_data_equals_the_loop_over_words(pattern: bytes, length: int) -> None:
    data = (pattern * length)[:length]
    for buffer in (data, bytearray(data), memoryview(data)):
        assert checksum.finish(checksum.sum16(buffer)) % 0xFFFF == by_words(data) % 0xFFFF


@given(st.binary(min_size=1, max_size=200), st.integers(1, 0xFFFE))
def test_a_wrong_field_is_not_valid(data: bytes, error: int) -> None:
    data += bytes(len(data) % 2)
    field = (checksum.finish(checksum.sum16(data)) + error) % 0xFFFF
    assert not checksum.valid(data + field.to_bytes(2, "big"))


@given(st.binary(max_size=100), st.lists(st.integers(0, 100), max_size=5))
def test_parts_sum_to_the_whole_wherever_the_cuts_are(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[start:end] for start, end in pairwise(edges)]
    assert checksum.sum_buffers(parts) == checksum.sum16(data)
    assert checksum.sum_buffers(map(memoryview, parts)) == checksum.sum16(data)


@given(st.binary(min_size=2, max_size=60), st.data())
def test_updating_in_place_equals_computing_anew(data: bytes, draw: st.DataObject) -> None:
    data += bytes(len(data) % 2)
    at = 2 * draw.draw(st.integers(0, len(data) // 2 - 1))
    new = draw.draw(st.binary(min_size=2, max_size=min(16, len(data) - at)).filter(lambda new: len(new) % 2 == 0))
    old = data[at : at + len(new)]
    changed = data[:at] + new + data[at + len(new) :]
    before = checksum.finish(checksum.sum16(data))
    after = checksum.update(before, checksum.sum16(old), checksum.sum16(new))
    assert after == checksum.finish(checksum.sum16(changed))
    assert checksum.valid(changed + after.to_bytes(2, "big"))


@given(st.binary(min_size=4, max_size=4), st.binary(min_size=4, max_size=4), st.integers(0, 255), st.integers(0, 65535))
def test_the_pseudo_header_of_ipv4_is_the_one_drawn(src: bytes, dst: bytes, proto: int, length: int) -> None:
    drawn = struct.pack("!4s4sBBH", src, dst, 0, proto, length)
    assert checksum.pseudo(src, dst, proto, length) % 0xFFFF == checksum.sum16(drawn)


@given(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=16, max_size=16),
    st.integers(0, 255),
    st.integers(0, 2**32 - 1),
)
def test_the_pseudo_header_of_ipv6_is_the_one_drawn(src: bytes, dst: bytes, proto: int, length: int) -> None:
    drawn = struct.pack("!16s16sII", src, dst, length, proto)
    assert checksum.pseudo(src, dst, proto, length) % 0xFFFF == checksum.sum16(drawn)


@given(st.integers(0, 2**40))
def test_udp_never_sends_the_zero_that_means_none(total: int) -> None:
    assert checksum.finish_udp(total) in range(1, 0x10000)
    assert (checksum.finish_udp(total) - checksum.finish(total)) % 0xFFFF == 0


@given(st.binary(max_size=40), st.binary(max_size=40).filter(lambda data: len(data) % 2 == 0))
def test_a_folded_pseudo_header_completes_to_the_full_checksum(payload: bytes, pseudo: bytes) -> None:
    """What a device does for VIRTIO_NET_HDR_F_NEEDS_CSUM: sum from csum_start, the field holding the folded part."""
    partial = checksum.fold(checksum.sum16(pseudo))
    completed = checksum.finish(checksum.sum16(partial.to_bytes(2, "big") + payload))
    assert completed == checksum.finish(checksum.sum16(pseudo) + checksum.sum16(payload))
