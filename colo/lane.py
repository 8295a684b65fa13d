"""The fast lanes: a chunk of the framed stream is walked without an object for any frame.

The ordinary frame, untagged IPv4 without options, TCP, ACK with or without PSH, the next of a known connection, is
dealt with in line: one `struct` call that reads prefix, IP and TCP header, one dictionary look-up by the twelve bytes
of addresses and ports, one comparison of payload. Everything else goes through `colo.compare.Comparator`, whose way is
the readable one; tests/property/colo holds the lanes against it.

The fields of a record are used by index here; `colo.held` names them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias, final

from colo.framing import Framing
from colo.held import Outbox
from colo.ordinary import (
    ACK_AND_WINDOW,
    ACK_ONLY,
    DATA_OFFSET,
    DATA_OFFSET_MIN,
    FLAGS_MASK,
    IPV4_MASK,
    IPV4_NO_OPTIONS,
    TCP_MASK,
    TCP_WHOLE,
    Ordinary,
)
from colo.tcp_flow import NOTHING, TcpFlow
from pystack import Micros
from pystack.seq import MASK

_COPIED: Final = 2048  # longer payloads are compared through a view, shorter ones through a slice

Slow: TypeAlias = Callable[[bytes, int, int, Micros], int]
"""(data, at, position of data, now): deals with the frame at ``at``; returns where the next one is, -1 if it is not
whole."""


@final
class Lane:
    """One side's way through a stream whose frames have ``vnet_hdr_len`` bytes of virtio_net_hdr.

    Args:
        flows: the connections, by key. slow: for frames that are not ordinary. held: told when a flow has a frame that
            waits and is not watched, or too many.
    """

    __slots__ = (
        "_bias", "_flows", "_held", "_limit", "_out", "_overhead", "_scale", "_slow", "_struct", "vnet_hdr_len"
    )  # fmt: skip

    def __init__(
        self,
        framing: Framing,
        vnet_hdr_len: int,
        flows: dict[bytes, Any],
        out: Outbox,
        limit: int,
        slow: Slow,
        held: Callable[[TcpFlow, Micros], None],
    ) -> None:
        self.vnet_hdr_len = vnet_hdr_len
        ordinary = Ordinary(framing, vnet_hdr_len)
        self._struct, self._overhead = ordinary.struct, ordinary.overhead
        self._scale, self._bias = ordinary.scale, ordinary.bias
        self._flows = flows
        self._out = out
        self._limit = limit
        self._slow = slow
        self._held = held

    def primary(self, data: bytes, at: int, position: int, now: Micros) -> int:  # noqa: C901 - one flat loop, no calls
        """Walk the primary's frames from ``at`` on; returns where the first one starts that is not whole."""
        unpack, overhead, scale, bias = self._struct.unpack_from, self._overhead, self._scale, self._bias
        get, slow, ranges, limit = self._flows.get, self._slow, self._out.ranges, self._limit
        size = len(data)
        last = size - self._struct.size
        last_range: list[Any] | None = None
        released = 0
        while at <= last:
            prefix, kind, total, protocol, key, seq, tail = unpack(data, at)
            end = at + overhead + total
            if (
                kind & IPV4_MASK == IPV4_NO_OPTIONS
                and protocol & TCP_MASK == TCP_WHOLE
                and tail & FLAGS_MASK == ACK_ONLY
                and prefix == total * scale + bias
                and end <= size
                and (flow := get(key)) is not None
                and flow.p_open
                and seq == flow.p_nxt & MASK
                and (payload := at + overhead + 20 + (tail >> 26 & 0x3C)) <= end
                and tail & DATA_OFFSET >= DATA_OFFSET_MIN
            ):
                told = tail & ACK_AND_WINDOW
                if told != flow.p_told:
                    flow.primary_acked_again(tail >> 32, tail & 0xFFFF)
                start = flow.p_nxt
                stop = start + end - payload
                single = flow.single
                if single is NOTHING and stop > start:
                    # Nothing waits on either side; now this frame does.
                    if not flow.armed:
                        self._held(flow, now)
                    flow.single = (start, stop, data, payload, told, at, end, now, position)
                    flow.p_nxt = stop
                    at = end
                    continue
                if single and single[0] == start:
                    # One piece of the secondary does.
                    if (
                        single[1] == stop
                        and (told == flow.s_told or (flow.p_ack <= flow.s_ack and flow.p_right <= flow.s_right))
                        and single[2].startswith(
                            data[payload:end] if stop - start < _COPIED else memoryview(data)[payload:end], single[3]
                        )
                    ):
                        flow.single = NOTHING
                        flow.p_nxt = single[1]  # the secondary's integer: one object less, see _same in tcp_flow
                        released += 1
                        if last_range is not None and last_range[3] == at:
                            last_range[3] = end
                        else:
                            last_range = [position + at, data, at, end]
                            ranges.append(last_range)
                        at = end
                        continue
                    at = slow(data, at, position, now)
                    continue
                if single is not None:
                    flow.unfold()
                held = flow.held_many
                record = (
                    start, stop, data, payload, flow.p_ack, flow.p_right, 0x10, at, end, now, position, None
                )  # fmt: skip
                if flow.s_nxt <= start:
                    # The secondary has not come this far.
                    if stop > start:
                        flow.ahead_many.append(record)
                        flow.p_nxt = stop
                    elif not held and flow.p_ack <= flow.s_ack:
                        if flow.p_right > flow.s_right:  # with a window that the secondary has not
                            at = slow(data, at, position, now)
                            continue
                        # A pure acknowledgement that the secondary has given too.
                        if not flow.ahead_many:
                            flow.single = NOTHING
                        released += 1
                        if last_range is not None and last_range[3] == at:
                            last_range[3] = end
                        else:
                            last_range = [position + at, data, at, end]
                            ranges.append(last_range)
                        at = end
                        continue
                    held.append(record)
                    if not flow.armed or len(held) > limit:
                        self._held(flow, now)
                    at = end
                    continue
                if stop > start and not held and flow.p_ack <= flow.s_ack and flow.p_right <= flow.s_right:
                    ahead = flow.ahead_many
                    piece = ahead[0]
                    if (
                        piece[1] == stop
                        and piece[0] == start
                        and piece[2].startswith(
                            data[payload:end] if stop - start < _COPIED else memoryview(data)[payload:end], piece[3]
                        )
                    ):
                        # The secondary was first, and has sent the same in one piece.
                        del ahead[0]
                        if not ahead:
                            flow.single = NOTHING
                        flow.p_nxt = piece[1]
                        released += 1
                        if last_range is not None and last_range[3] == at:
                            last_range[3] = end
                        else:
                            last_range = [position + at, data, at, end]
                            ranges.append(last_range)
                        at = end
                        continue
            following = slow(data, at, position, now)
            if following < 0:
                break
            at = following
        self._out.frames += released
        return self._rest(data, at, position, now) if at > last else at

    def secondary(self, data: bytes, at: int, position: int, now: Micros) -> int:  # noqa: C901 - one flat loop too
        """Walk the secondary's frames from ``at`` on; returns where the first one starts that is not whole."""
        unpack, overhead, scale, bias = self._struct.unpack_from, self._overhead, self._scale, self._bias
        get, slow, ranges, limit = self._flows.get, self._slow, self._out.ranges, self._limit
        size = len(data)
        last = size - self._struct.size
        last_range: list[Any] = [0, None, 0, -1]
        released = 0
        while at <= last:
            prefix, kind, total, protocol, key, seq, tail = unpack(data, at)
            end = at + overhead + total
            if (
                kind & IPV4_MASK == IPV4_NO_OPTIONS
                and protocol & TCP_MASK == TCP_WHOLE
                and tail & FLAGS_MASK == ACK_ONLY
                and prefix == total * scale + bias
                and end <= size
                and (flow := get(key)) is not None
                and flow.s_open
                and seq == flow.s_nxt & MASK
                and (payload := at + overhead + 20 + (tail >> 26 & 0x3C)) <= end
                and tail & DATA_OFFSET >= DATA_OFFSET_MIN
            ):
                told = tail & ACK_AND_WINDOW
                start = flow.s_nxt
                stop = start + end - payload
                single = flow.single
                if start == stop:
                    flow.secondary_acked_again(tail >> 32, tail & 0xFFFF)
                    if single is not NOTHING and flow.held:
                        flow.advance()
                    at = end
                    continue
                if single is NOTHING:
                    # Nothing waits on either side: the secondary is first.
                    if told != flow.s_told:
                        flow.secondary_acked_again(tail >> 32, tail & 0xFFFF)
                    if not flow.armed:
                        self._held(flow, now)
                    flow.single = (start, stop, data, payload, at, end)
                    flow.s_nxt = stop
                    at = end
                    continue
                if single:
                    if (
                        single[0] == start
                        and single[1] == stop
                        and single[2].startswith(
                            data[payload:end] if stop - start < _COPIED else memoryview(data)[payload:end], single[3]
                        )
                    ):
                        # The one frame that waits has the same bytes in one piece.
                        if told != flow.s_told:
                            flow.secondary_acked_again(tail >> 32, tail & 0xFFFF)
                        flow.s_nxt = single[1]  # the primary's integer: one object less, see _same in tcp_flow
                        if single[4] == flow.s_told or flow.secondary_covers(single[4]):
                            flow.single = NOTHING
                            released += 1
                            if last_range[3] == single[5] and last_range[1] is single[2]:
                                last_range[3] = single[6]
                            else:
                                last_range = [single[8] + single[5], single[2], single[5], single[6]]
                                ranges.append(last_range)
                        else:
                            flow.unfold()
                            flow.ahead_many.clear()
                            flow.advance()
                        at = end
                        continue
                    flow.unfold()
                ahead = flow.ahead_many
                if flow.p_nxt > start:
                    record = ahead[0]
                    if (
                        record[1] == stop
                        and record[0] == start
                        and record[2].startswith(
                            data[payload:end] if stop - start < _COPIED else memoryview(data)[payload:end], record[3]
                        )
                    ):
                        # The same bytes in one piece as the primary's.
                        if told != flow.s_told:
                            flow.secondary_acked_again(tail >> 32, tail & 0xFFFF)
                        del ahead[0]
                        flow.s_nxt = record[1]
                        held = flow.held_many
                        if held[0] is record and record[4] <= flow.s_ack and record[5] <= flow.s_right:
                            del held[0]
                            released += 1
                            if last_range[3] == record[7] and last_range[1] is record[2]:
                                last_range[3] = record[8]
                            else:
                                last_range = [record[10] + record[7], record[2], record[7], record[8]]
                                ranges.append(last_range)
                            if not held:
                                if not ahead:
                                    flow.single = NOTHING
                            elif held[0][1] <= stop:
                                flow.advance()
                        else:
                            flow.advance()
                        at = end
                        continue
                elif len(ahead) <= limit:
                    # The secondary is first.
                    if told != flow.s_told:
                        flow.secondary_acked_again(tail >> 32, tail & 0xFFFF)
                        if flow.held_many:
                            flow.advance()
                    ahead.append((start, stop, data, payload, at, end))
                    flow.s_nxt = stop
                    if not flow.armed:
                        self._held(flow, now)
                    at = end
                    continue
            following = slow(data, at, position, now)
            if following < 0:
                break
            at = following
        self._out.frames += released
        return self._rest(data, at, position, now) if at > last else at

    def _rest(self, data: bytes, at: int, position: int, now: Micros) -> int:
        """Frames at the end of ``data`` that are too short to be ordinary ones."""
        slow = self._slow
        while (following := slow(data, at, position, now)) >= 0:
            at = following
        return at
