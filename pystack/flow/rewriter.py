"""The rewriter: lets a secondary, which chose its own numbers, take part in connections of the primary.

Read before editing: docs/reference/rewriter.md, `pystack.flow.offsets` (what is learnt), `pystack.flow.translate` (what
is changed in a segment), RFC 9293 section 3.5, RFC 7323 section 5.

The client knows the primary's initial sequence number and timestamp clock alone. What the secondary sends is translated
into them, what the client sends is translated into the secondary's. Sans-I/O: one object for one secondary. With
`Rewriter.observe_primary` it sees both machines and learns from their own SYNs and SYN-ACKs; without, it is a drop-in
for QEMU's filter-rewriter, which sees the client's frames to the secondary and the secondary's output and learns the
primary's number from what the client acknowledges first.
"""

from __future__ import annotations

from typing import Final, final

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.flow import translate
from pystack.flow.key import directed_key
from pystack.flow.offset_table import OffsetTable, RewriterConfig
from pystack.flow.offsets import CLIENT_FIN, GUEST_FIN, UNKNOWN, Offsets
from pystack.seq import MASK
from pystack.wire.packet import ACK, FIN, PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, RST, SYN, Packet

__all__ = ["Rewriter", "RewriterConfig"]

_RARE: Final = SYN | FIN | RST
_OPENING: Final = SYN | ACK | RST
_ICMP: Final = (PROTO_ICMP, PROTO_ICMPV6)
_REVIVED_AFTER: Final = SECOND
"""What the guest still sends this long after a reset shows that the reset was not believed."""


@final
class Rewriter:
    """Translates between the client's view of a connection, which is the primary's, and the secondary's.

    Attributes:
        counters: ``rewriter.*``, and ``flow.*`` of the table.
    """

    __slots__ = (
        "_by_input", "_by_output", "_failed_over", "_idle", "_observing", "_table", "config", "counters",
    )  # fmt: skip

    def __init__(self, config: RewriterConfig | None = None, counters: Counters | None = None) -> None:
        self.config = RewriterConfig() if config is None else config
        self.counters = Counters() if counters is None else counters
        self._table = OffsetTable(self.config, self.counters)
        self._by_output = self._table.by_output
        self._by_input = self._table.by_input
        self._idle = self.config.idle_timeout
        self._observing = False
        self._failed_over = False

    def __len__(self) -> int:
        """How many connections are known."""
        return len(self._by_output)

    @property
    def waiting_bytes(self) -> int:
        """Bytes of frames that wait for an offset."""
        return self._table.waiting_bytes

    # ---------------------------------------------------------------------------------------------------------- frames

    def observe_primary(self, packet: Packet, now: Micros) -> None:
        """Learn from what the primary sends, whether or not it is ever released: its ISS, and how far its clock is.

        The clock is noted here, and not from what the client echoes, because the client may have seen a timestamp whose
        echo never came. What was sent bounds what was seen.
        """
        self._observing = True
        if packet.proto != PROTO_TCP:
            return
        key = packet.key
        if packet.tags or packet.version != 4:
            key = directed_key(packet)
        flow = self._by_output.get(key)
        if packet.flags & SYN:
            self._observe_syn(packet, key, flow, now)
        elif flow is not None and flow.high_ts >= 0:
            stamps = translate.timestamps_untrusted(packet)
            if stamps is not None:
                flow.saw_primary_clock(stamps[0])

    def from_secondary(self, packet: Packet, now: Micros) -> bytes:
        """A frame of the secondary as the client must see it; ``packet.frame`` itself when nothing is to change."""
        if packet.proto != PROTO_TCP:
            return self._quote_from_secondary(packet)
        key = packet.key
        if packet.tags or packet.version != 4:
            key = directed_key(packet)
        flow = self._by_output.get(key)
        if flow is None or not flow.settled or flow.epoch != self._table.epoch or packet.flags & _RARE:
            return self._from_secondary_rarely(packet, key, flow, now)
        flow.deadline = now + self._idle
        if not (flow.seq_offset or flow.ts_offset):
            return packet.frame
        self.counters.bump("rewriter.from_secondary")
        return translate.from_secondary(packet, flow.seq_offset, flow.ts_offset, self.counters)

    def to_secondary(self, packet: Packet, now: Micros) -> bytes | None:
        """A frame of the client as the secondary must see it; ``packet.frame`` itself when nothing is to change.

        None: it is kept, and will come out of `take_waiting` when the offset is known, or is dropped when there is no
        room. A secondary that saw an acknowledgement of what it never sent would answer with a reset.
        """
        if packet.proto != PROTO_TCP:
            return self._quote_to_secondary(packet)
        key = packet.key
        if packet.tags or packet.version != 4:
            key = directed_key(packet)
        flow = self._by_input.get(key)
        if flow is None or not flow.settled or flow.epoch != self._table.epoch or packet.flags & _RARE:
            return self._to_secondary_rarely(packet, key, flow, now)
        flow.deadline = now + self._idle
        if not (flow.seq_offset or flow.ts_offset):
            return packet.frame
        return self._translated_to_secondary(packet, flow)

    def take_waiting(self) -> list[bytes]:
        """Frames for the secondary that were kept and need not wait any longer, in the order in which they came.

        To be called after each of the calls above and after `checkpoint`, before the next frame goes to the secondary.
        """
        return self._table.take_ready()

    def translates(self, packet: Packet) -> bool:
        """Whether it is known by how much the secondary's numbers differ, in the connection of its segment ``packet``.

        Also True where that is of no interest: of a connection that was not followed from its beginning.
        """
        flow = self._by_output.get(directed_key(packet))
        if flow is None:
            return True
        self._table.catch_up(flow)
        return flow.known

    # ---------------------------------------------------------------------------------------------------------- events

    def checkpoint(self) -> None:
        """The secondary is a copy of the primary now: all offsets are zero, also of connections that are still opening.

        Constant time: each flow learns of it when it is next touched. Frames that were kept go out as they are. Ignored
        after a failover: the survivor's clients still use the primary's numbers, and nobody makes it a copy any more.
        """
        if self._failed_over:
            self.counters.bump("rewriter.checkpoint_ignored")
            return
        self.counters.bump("rewriter.checkpoints")
        self._table.zero_all()

    def failover(self, now: Micros) -> None:  # noqa: ARG002 - an event with its time, as all of a proxy's
        """The primary is gone. Offsets persist for as long as their flows live; new connections need none.

        From now on the secondary's timestamps do not run behind what the client may have seen of the primary's, for its
        PAWS check (RFC 7323 section 5.3) would drop what does.
        """
        if not self._failed_over:
            self._failed_over = True
            self._table.look_again()

    def forget(self, key: bytes) -> None:
        """The connection with this `pystack.flow.key.flow_key` is over. Nothing happens when it is not known."""
        self._table.forget(key)

    def tick(self, now: Micros) -> None:
        """Let flows die that were silent for too long."""
        self._table.tick(now)

    def next_timeout(self) -> Micros | None:
        """When `tick` has something to do."""
        return self._table.next_timeout()

    # ------------------------------------------------------------------------------------- what the machines' SYNs say

    def _observe_syn(self, packet: Packet, key: bytes, flow: Offsets | None, now: Micros) -> None:
        if self._failed_over:
            return  # a straggler
        flow = self._flow_of_guest(packet, key, flow, now)
        if flow is None:
            return
        peer_iss = (packet.ack - 1) & MASK if packet.flags & ACK else UNKNOWN
        if not flow.includes(packet.seq, flow.p_iss, peer_iss):
            # What the primary opens or accepts is what the client will live with.
            self._begin(flow, peer_iss)
        tsval = _tsval(packet)
        if flow.note_primary(packet.seq, tsval):
            self._learnt(flow, now)
        elif flow.high_ts >= 0 and tsval >= 0:
            flow.saw_primary_clock(tsval)
        self._refresh(flow, now)

    def _flow_of_guest(self, packet: Packet, key: bytes, flow: Offsets | None, now: Micros) -> Offsets | None:
        """The flow of a machine's SYN or SYN-ACK, made if there was none; None when there is no room for it."""
        if packet.eth != self.config.vnet_hdr_len:
            self.counters.bump("rewriter.bad_vnet_hdr_len")
            return None
        if flow is None:
            flow = self._table.create(packet, key, now, from_guest=True)
            if flow is not None:
                self._start(flow, (packet.ack - 1) & MASK if packet.flags & ACK else UNKNOWN)
            return flow
        self._table.catch_up(flow)
        return flow

    def _start(self, flow: Offsets, peer_iss: int) -> None:
        if peer_iss >= 0 and peer_iss == flow.next_peer_iss:
            flow.begin_next()
        else:
            flow.begin(peer_iss)
        if self._failed_over:
            # There is one machine only, and learning from what a client claims would make any claim come true.
            flow.accept_zero()

    def _begin(self, flow: Offsets, peer_iss: int) -> None:
        """A new incarnation takes the place of the one that the flow stood for."""
        self.counters.bump("rewriter.new_incarnations")
        self._table.drop_waiting(flow)
        self._start(flow, peer_iss)

    def _note_secondary(self, packet: Packet, flow: Offsets, now: Micros) -> bool:
        """A SYN or SYN-ACK of the secondary; False when it is none of the flow's present incarnation."""
        peer_iss = (packet.ack - 1) & MASK if packet.flags & ACK else UNKNOWN
        if not flow.includes(packet.seq, flow.s_iss, peer_iss):
            if peer_iss >= 0 and peer_iss == flow.next_peer_iss:
                if self._observing and flow.opened and not flow.is_over and not self._failed_over:
                    # Whether there is a new incarnation is the primary's to say; until then its number waits.
                    flow.next_s_iss, flow.next_s_ts = packet.seq, _tsval(packet)
                    return False
            elif peer_iss >= 0 and not flow.is_over:
                self.counters.bump("rewriter.stale_syn")
                return False
            self._begin(flow, peer_iss)
        if flow.note_secondary(packet.seq, _tsval(packet)):
            self._learnt(flow, now)
        elif packet.seq != flow.s_iss:
            self.counters.bump("rewriter.stale_syn")
        return True

    def _learnt(self, flow: Offsets, now: Micros) -> None:
        self.counters.bump("rewriter.learnt")
        for packet in self._table.take_waiting(flow):
            self._note_client(packet.flags, flow, now)
            self._table.ready.append(self._translated_to_secondary(packet, flow))

    def _refresh(self, flow: Offsets, now: Micros) -> None:
        """After anything rare: whether the short way is open, and how long the flow may be silent."""
        lift = self._failed_over and flow.high_ts >= 0
        flow.settled = flow.known and flow.opened and not flow.is_over and not lift
        self._table.keep(flow, now)

    # ---------------------------------------------------------------------------------------- the secondary's segments

    def _from_secondary_rarely(self, packet: Packet, key: bytes, flow: Offsets | None, now: Micros) -> bytes:
        """SYN, FIN, RST, and anything of a flow that is not simply open."""
        frame, flags = packet.frame, packet.flags
        if packet.is_fragment:
            whole = translate.first_fragment_untrusted(packet)
            return frame if whole is None else self.from_secondary(whole, now)
        if flags & SYN and not flags & RST:
            flow = self._flow_of_guest(packet, key, flow, now)
            if flow is None or not self._note_secondary(packet, flow, now):
                return frame
        elif flow is None:
            return frame
        self._table.catch_up(flow)
        if flags & FIN:
            flow.fins |= GUEST_FIN
        if flags & RST:
            flow.reset_at = now
        elif 0 <= flow.reset_at < now - _REVIVED_AFTER:
            flow.reset_at = UNKNOWN
        if self._failed_over and flow.high_ts >= 0:
            tsval = _tsval(packet)
            if tsval >= 0 and flow.lift(tsval):
                self.counters.bump("rewriter.clock_lifted")
        self._refresh(flow, now)
        if not (flow.seq_offset or flow.ts_offset):
            return frame
        self.counters.bump("rewriter.from_secondary")
        return translate.from_secondary(packet, flow.seq_offset, flow.ts_offset, self.counters)

    def _quote_from_secondary(self, packet: Packet) -> bytes:
        """An ICMP error about a segment of the client, as the secondary saw it: its ACK is the secondary's number."""
        found = translate.quoted_untrusted(packet) if packet.proto in _ICMP else None
        flow = self._by_input.get(found[0]) if found else None
        if found is None or flow is None:
            return packet.frame
        self._table.catch_up(flow)
        at = found[1]
        if not flow.seq_offset or packet.end < at + 14 or not packet.frame[at + 13] & ACK:
            return packet.frame
        self.counters.bump("rewriter.icmp")
        return translate.quote(packet, at + 8, -flow.seq_offset)

    # ------------------------------------------------------------------------------------------- the client's segments

    def _to_secondary_rarely(self, packet: Packet, key: bytes, flow: Offsets | None, now: Micros) -> bytes | None:
        """SYN, FIN, RST, and anything of a flow that is not simply open."""
        frame, flags = packet.frame, packet.flags
        if packet.is_fragment:
            whole = translate.first_fragment_untrusted(packet)
            return frame if whole is None else self.to_secondary(whole, now)
        if flow is None:
            if flags & _OPENING == SYN:
                self._client_opens(packet, key, now)
            return frame
        self._table.catch_up(flow)
        if flags & _OPENING == SYN:
            self._client_repeats(packet.seq, flow)
            self._refresh(flow, now)
            return frame
        if flags & ACK and not flow.known and self._must_wait(packet, flow, now):
            self._refresh(flow, now)
            self._table.hold(packet, flow)
            return None
        self._note_client(flags, flow, now)
        self._refresh(flow, now)
        return self._translated_to_secondary(packet, flow) if flow.seq_offset or flow.ts_offset else frame

    def _note_client(self, flags: int, flow: Offsets, now: Micros) -> None:
        """The secondary gets a segment of the client with these flags."""
        if flags & RST:
            flow.reset_at = now
            self._table.drop_waiting(flow)
            return
        if flags & FIN:
            flow.fins |= CLIENT_FIN
        if flags & ACK and flow.known:
            flow.opened = True

    def _client_opens(self, packet: Packet, key: bytes, now: Micros) -> None:
        if packet.eth != self.config.vnet_hdr_len:
            self.counters.bump("rewriter.bad_vnet_hdr_len")
            return
        flow = self._table.create(packet, key, now, from_guest=False)
        if flow is not None:
            self._start(flow, packet.seq)
            self._refresh(flow, now)

    def _client_repeats(self, seq: int, flow: Offsets) -> None:
        """A SYN on the ports of a known flow: again, late, of an earlier connection, or of the next one.

        While the flow lives it changes nothing. A machine that accepts it says so with a SYN-ACK.
        """
        if seq == flow.peer_iss or seq == flow.next_peer_iss:
            return
        if flow.is_over:
            self._begin(flow, seq)
        elif flow.peer_iss >= 0 or flow.opened:
            flow.next_peer_iss = seq
            flow.next_s_iss = flow.next_s_ts = UNKNOWN

    def _must_wait(self, packet: Packet, flow: Offsets, now: Micros) -> bool:
        """Whether a segment with an ACK waits for the offset, which it may itself complete."""
        by_guest = flow.peer_iss < 0
        if packet.flags & RST and not by_guest:
            return False  # judged by its SEQ alone, in SYN-RECEIVED (RFC 9293 section 3.10.7.4)
        if flow.p_iss >= 0:
            return True
        if self._observing:
            return False  # the primary has sent nothing that could be acknowledged
        if flow.frozen and flow.s_iss < 0:
            flow.accept_zero()
            return False
        # Its answer to the guest's SYN (a refusal is one), or the third segment of the client's own handshake.
        if not (packet.flags & (SYN | RST) if by_guest else flow.is_first_ack(packet.seq)):
            self.counters.bump("rewriter.stray_ack")
            return False
        stamps = translate.timestamps_untrusted(packet)
        if flow.note_acknowledged((packet.ack - 1) & MASK, 0 if stamps is None else stamps[1]):
            self._learnt(flow, now)
        return not flow.known

    def _translated_to_secondary(self, packet: Packet, flow: Offsets) -> bytes:
        if not self._observing and flow.high_ts >= 0 and not self._failed_over:
            # What the client echoes is all that is seen of the primary's clock here.
            stamps = translate.timestamps_untrusted(packet)
            if stamps is not None and stamps[1]:
                flow.saw_primary_clock(stamps[1])
        self.counters.bump("rewriter.to_secondary")
        return translate.to_secondary(packet, flow.seq_offset, flow.ts_offset, self.counters)

    def _quote_to_secondary(self, packet: Packet) -> bytes:
        """An ICMP error about a segment of the guest, as the primary sent it."""
        found = translate.quoted_untrusted(packet) if packet.proto in _ICMP else None
        flow = self._by_output.get(found[0]) if found else None
        if found is None or flow is None:
            return packet.frame
        self._table.catch_up(flow)
        if not flow.seq_offset:
            return packet.frame
        self.counters.bump("rewriter.icmp")
        return translate.quote(packet, found[1] + 4, flow.seq_offset)


def _tsval(packet: Packet) -> int:
    stamps = translate.timestamps_untrusted(packet)
    return UNKNOWN if stamps is None else stamps[0]
