"""Connections of which both machines send the same, or not quite. Each function drafts one kind of case."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pystack.wire import tcp
from pystack.wire.packet import ACK, RST, SYN
from tests.colo_guests import Guest
from tests.interop.qemu_judge.draft import Draft, changed, cut, pad

_ISS: Final = (1000, 0x7FFF_FFF0, 0xFFFF_FFFF, 0xFFFF_FF80, 0xFFFF_FFE0)


@dataclass(slots=True)
class Tcp:
    """Both machines' ends of one connection. The secondary's frames have passed a rewriter: numbers are the same."""

    draft: Draft
    primary: Guest
    secondary: Guest
    stream: bytes

    @classmethod
    def of(cls, draft: Draft, *, open_it: bool | None = None, iss: int | None = None) -> Tcp:
        """A connection, opened unless it shall be picked up in the middle."""
        rng = draft.rng
        iss = rng.choice(_ISS) if iss is None else iss
        stamps = rng.random() < 0.4
        port = rng.randrange(1024, 65536)
        one = Guest(iss=iss, dport=port, wire=draft.wire, ident=rng.randrange(9000), tsval=500 if stamps else None)
        other = replace(one, ident=rng.randrange(9000), tsval=77_000 if stamps else None)
        made = cls(draft, one, other, rng.randbytes(rng.randrange(40, 240)))
        if open_it if open_it is not None else rng.random() < 0.7:
            made.open()
        return made

    def open(self) -> None:
        """The two SYN-ACKs. A rewriter may leave the secondary's own number in it, as QEMU's does."""
        other = (
            self.secondary
            if self.draft.rng.random() < 0.5
            else replace(self.secondary, iss=self.draft.rng.getrandbits(32))
        )
        self.draft.mine.append(self.primary.syn_ack())
        self.draft.its.append(other.syn_ack())

    def send(self, *, like: bool = False, pieces: int = 4) -> None:
        """The stream, cut at the same places or at others."""
        one = cut(self.draft.rng, len(self.stream), pieces)
        other = one if like else cut(self.draft.rng, len(self.stream), pieces)
        self.draft.mine += [self.data(self.primary, *piece) for piece in one]
        self.draft.its += [self.data(self.secondary, *piece) for piece in other]

    def data(self, guest: Guest, start: int, stop: int) -> bytes:
        """A piece of the stream."""
        return guest.data(start, self.stream[start:stop])

    def end(self) -> None:
        """Both acknowledge what the client has sent."""
        self.draft.mine.append(self.primary.ack(len(self.stream)))
        self.draft.its.append(self.secondary.ack(len(self.stream)))


def set_up(draft: Draft) -> None:
    """SYN-ACK or, for a connection that the guest opens, SYN; then a first acknowledgement."""
    connection = Tcp.of(draft, open_it=False)
    one, other = connection.primary, connection.secondary
    if draft.rng.random() < 0.3:
        options = tcp.build_options(mss=1460, window_scale=7, sack_permitted=True)
        draft.mine.append(one.segment(one.iss, SYN, options=options))
        draft.its.append(other.segment(other.iss + draft.rng.choice((0, 5000)), SYN, options=options))
    else:
        connection.open()
    if draft.rng.random() < 0.3:
        draft.mine.append(draft.mine[0])  # its answer was lost
    if draft.rng.random() < 0.5:
        draft.mine.append(one.ack(0))
        draft.its.append(other.ack(0))


def set_up_with_other_options(draft: Draft) -> None:
    connection = Tcp.of(draft, open_it=False)
    fields = draft.rng.choice(({"mss": 1400}, {"scale": 3}, {"scale": None}, {"sack": False}))
    draft.asked = True
    draft.hold(connection.primary.syn_ack())
    draft.its.append(connection.secondary.syn_ack(**fields))


def set_up_refused_by_one(draft: Draft) -> None:
    connection = Tcp.of(draft, open_it=False)
    # A reset before there is anything that it could answer may belong to what was before: more is waited for.
    draft.order = draft.rng.choice(("primary first", "primary first", "secondary first"))
    draft.asked = draft.order == "primary first"
    draft.hold(connection.primary.syn_ack())
    draft.its.append(connection.secondary.segment(0, RST | ACK))


def set_up_by_one(draft: Draft) -> None:
    """The secondary has not answered yet."""
    connection = Tcp.of(draft, open_it=False)
    draft.hold(connection.primary.syn_ack())


def data_cut_alike(draft: Draft) -> None:
    connection = Tcp.of(draft)
    connection.send(like=True)
    connection.end()


def data_cut_differently(draft: Draft) -> None:
    connection = Tcp.of(draft)
    connection.send(pieces=7)
    if draft.rng.random() < 0.5:
        connection.end()


def data_in_turns(draft: Draft) -> None:
    """Piece by piece, and each machine acknowledges in between."""
    connection = Tcp.of(draft)
    for start, stop in cut(draft.rng, len(connection.stream), 5):
        draft.mine.append(connection.data(connection.primary, start, stop))
        draft.its.append(connection.data(connection.secondary, start, stop))
        for guest, frames in ((connection.primary, draft.mine), (connection.secondary, draft.its)):
            guest.acked += 100
            frames.append(guest.ack(stop))
    draft.order = "steps"


def retransmitted(draft: Draft) -> None:
    """A segment comes again, as it was or cut anew."""
    connection = Tcp.of(draft)
    pieces = cut(draft.rng, len(connection.stream), 5)
    for guest, frames in ((connection.primary, draft.mine), (connection.secondary, draft.its)):
        for index, (start, stop) in enumerate(pieces):
            frames.append(connection.data(guest, start, stop))
            if draft.rng.random() < 0.4:
                back = 0 if draft.rng.random() < 0.5 else draft.rng.randrange(index + 1)
                begin = pieces[index - back][0]
                frames.append(connection.data(guest, begin, stop))
    connection.end()


def retransmitted_with_more(draft: Draft) -> None:
    """A retransmission that begins in what was agreed on and goes on beyond it."""
    connection = Tcp.of(draft)
    length = len(connection.stream)
    half = draft.rng.randrange(2, length - 2)
    back = draft.rng.randrange(half)
    starts = (back, half) if draft.rng.random() < 0.7 else (half, back)
    for guest, frames, start in zip(
        (connection.primary, connection.secondary), (draft.mine, draft.its), starts, strict=True
    ):
        frames += [connection.data(guest, 0, half), connection.data(guest, start, length)]


def retransmitted_with_other_bytes(draft: Draft) -> None:
    connection = Tcp.of(draft, open_it=True)
    connection.send(like=True)
    start, stop = cut(draft.rng, len(connection.stream), 3)[0]
    spoilt = changed(draft.rng, connection.stream[start:stop])
    draft.asked = True
    draft.hold(connection.primary.data(start, spoilt))
    if draft.rng.random() < 0.6:
        draft.its.append(connection.secondary.ack(len(connection.stream)))
    draft.order = "steps"


def one_byte_different(draft: Draft) -> None:
    connection = Tcp.of(draft)
    stream = connection.stream
    at = draft.rng.randrange(len(stream))
    one = cut(draft.rng, len(stream), 4)
    draft.asked = True
    for start, stop in one:
        frame = connection.data(connection.primary, start, stop)
        if stop > at:
            draft.hold(frame)
        else:
            draft.mine.append(frame)
    connection.stream = stream[:at] + bytes((stream[at] ^ 1 << draft.rng.randrange(8),)) + stream[at + 1 :]
    pieces = one if draft.rng.random() < 0.6 else cut(draft.rng, len(stream), 4)
    draft.its += [connection.data(connection.secondary, *piece) for piece in pieces]


def secondary_behind(draft: Draft) -> None:
    """The secondary has sent less: what it lacks is held, and that is no difference yet."""
    connection = Tcp.of(draft, open_it=True)
    less = draft.rng.randrange(len(connection.stream))
    for start, stop in cut(draft.rng, len(connection.stream), 4):
        frame = connection.data(connection.primary, start, stop)
        if stop > less:
            draft.hold(frame)
        else:
            draft.mine.append(frame)
    if less:
        draft.its += [connection.data(connection.secondary, *piece) for piece in cut(draft.rng, less, 4)]


def secondary_ahead(draft: Draft) -> None:
    connection = Tcp.of(draft, open_it=True)
    less = draft.rng.randrange(1, len(connection.stream))
    draft.mine += [connection.data(connection.primary, *piece) for piece in cut(draft.rng, less, 4)]
    draft.its += [connection.data(connection.secondary, *piece) for piece in cut(draft.rng, len(connection.stream), 4)]


def piece_missing(draft: Draft) -> None:
    """A frame of the secondary was lost: nothing is compared across the gap."""
    connection = Tcp.of(draft, open_it=True)
    if draft.rng.random() < 0.3:
        connection.stream = b"A" * len(connection.stream)  # falsely equal to who does not look at numbers
    pieces = cut(draft.rng, len(connection.stream), 6)
    lost = draft.rng.randrange(len(pieces))
    for index, piece in enumerate(pieces):
        frame = connection.data(connection.primary, *piece)
        if index < lost:
            draft.mine.append(frame)
        else:
            draft.hold(frame)
    draft.its += [connection.data(connection.secondary, *piece) for index, piece in enumerate(pieces) if index != lost]


def out_of_order(draft: Draft) -> None:
    connection = Tcp.of(draft, open_it=True)
    connection.send(pieces=6)
    for frames in draft.rng.sample((draft.mine, draft.its), draft.rng.choice((1, 2))):
        if len(frames) > 2:
            at = draft.rng.randrange(1, len(frames) - 1)
            frames[at], frames[at + 1] = frames[at + 1], frames[at]


def wrapping(draft: Draft) -> None:
    """The stream passes 2^32, or ends or begins exactly there."""
    rng = draft.rng
    before = rng.randrange(1, 60)
    connection = Tcp.of(draft, iss=(1 << 32) - before - rng.choice((0, 1)))
    connection.send(like=rng.random() < 0.5)
    if rng.random() < 0.4:
        start = rng.randrange(len(connection.stream))
        draft.mine.append(connection.data(connection.primary, start, len(connection.stream)))
    if rng.random() < 0.5:
        connection.end()


def ending_at_zero(draft: Draft) -> None:
    """What was compared ends exactly at 2^32, and a part of it comes again."""
    connection = Tcp.of(draft, iss=1000)
    length = len(connection.stream)
    connection.primary.iss = connection.secondary.iss = (1 << 32) - length - 1
    draft.mine.clear()
    draft.its.clear()
    connection.open()
    connection.send(like=True)
    draft.mine.append(connection.data(connection.primary, draft.rng.randrange(length // 2), length))
    draft.its.append(connection.secondary.ack(length))
    draft.order = "steps"


def acknowledgement_ahead(draft: Draft) -> None:
    """The primary acknowledges more than the secondary, which catches up or does not."""
    connection = Tcp.of(draft, open_it=False)
    rng = draft.rng
    connection.primary.acked = connection.secondary.acked = rng.choice((7000, 0xFFFF_FF80))
    connection.open()
    catches_up = rng.random() < 0.5
    pieces = cut(rng, len(connection.stream), 4)
    ahead = rng.randrange(len(pieces) + 1)
    for index, piece in enumerate(pieces):
        if index == ahead:
            connection.primary.acked += 300
        frame = connection.data(connection.primary, *piece)
        if index >= ahead and not catches_up:
            draft.hold(frame)
        else:
            draft.mine.append(frame)
    if ahead == len(pieces):
        connection.primary.acked += 300
        frame = connection.primary.ack(len(connection.stream))
        draft.mine.append(frame) if catches_up else draft.hold(frame)
    other = pieces if rng.random() < 0.5 else cut(rng, len(connection.stream), 4)
    draft.its += [connection.data(connection.secondary, *piece) for piece in other]
    if catches_up:
        connection.secondary.acked += 300
        draft.its.append(connection.secondary.ack(len(connection.stream)))


def secondary_acknowledges_more(draft: Draft) -> None:
    connection = Tcp.of(draft)
    connection.secondary.acked += 500
    connection.send(like=draft.rng.random() < 0.5)
    connection.end()


def ended(draft: Draft) -> None:
    """FIN, alone or with the last data, on both sides."""
    connection = Tcp.of(draft)
    length = len(connection.stream)
    last = draft.rng.randrange(1, length)
    for guest, frames in ((connection.primary, draft.mine), (connection.secondary, draft.its)):
        if draft.rng.random() < 0.5:
            frames += [connection.data(guest, *piece) for piece in cut(draft.rng, length, 4)]
            frames.append(guest.fin(length))
        else:
            frames += [connection.data(guest, *piece) for piece in cut(draft.rng, last, 4)]
            frames.append(guest.fin(last, connection.stream[last:]))
        if draft.rng.random() < 0.3:
            guest.acked += 1
            frames.append(guest.segment(guest.iss + 2 + length, ACK))
    if connection.primary.acked > connection.secondary.acked:
        draft.its.append(
            replace(connection.secondary, acked=connection.primary.acked).segment(
                connection.primary.iss + 2 + length, ACK
            )
        )


def ended_by_the_primary(draft: Draft) -> None:
    """The secondary has not ended the stream yet."""
    connection = Tcp.of(draft, open_it=True)
    connection.send(like=draft.rng.random() < 0.5)
    length = len(connection.stream)
    if draft.rng.random() < 0.5:
        draft.hold(connection.primary.fin(length))
        draft.its.append(connection.secondary.ack(length))
    else:
        last = draft.rng.randrange(1, length)
        del draft.mine[1:]
        draft.mine += [connection.data(connection.primary, *piece) for piece in cut(draft.rng, last, 3)]
        draft.hold(connection.primary.fin(last, connection.stream[last:]))


def ended_early_by_the_secondary(draft: Draft) -> None:
    """The secondary ends the stream where the primary goes on: they cannot become equal any more."""
    connection = Tcp.of(draft, open_it=True)
    length = len(connection.stream)
    last = draft.rng.randrange(1, length)
    draft.asked = True
    draft.mine += [connection.data(connection.primary, *piece) for piece in cut(draft.rng, last, 3)]
    draft.hold(connection.data(connection.primary, last, length))
    draft.its += [connection.data(connection.secondary, *piece) for piece in cut(draft.rng, last, 3)]
    draft.its.append(connection.secondary.fin(last))


def reset(draft: Draft) -> None:
    """Both reset the connection, at the same place."""
    connection = Tcp.of(draft)
    connection.send(like=draft.rng.random() < 0.5)
    flags = draft.rng.choice((RST, RST | ACK))
    draft.mine.append(connection.primary.rst(len(connection.stream), flags))
    draft.its.append(connection.secondary.rst(len(connection.stream), flags))


def reset_by_the_primary(draft: Draft) -> None:
    connection = Tcp.of(draft, open_it=True)
    connection.send(like=True)
    draft.hold(connection.primary.rst(len(connection.stream)))
    draft.its.append(connection.secondary.ack(len(connection.stream)))


def reset_elsewhere(draft: Draft) -> None:
    """Both reset it, one of them earlier in the stream."""
    connection = Tcp.of(draft, open_it=True)
    length = len(connection.stream)
    early = draft.rng.randrange(length)
    draft.asked = True
    draft.mine += [connection.data(connection.primary, *piece) for piece in cut(draft.rng, length, 3)]
    draft.held |= {index for index in range(1, len(draft.mine)) if _end(connection, draft.mine[index]) > early}
    draft.hold(connection.primary.rst(length))
    draft.its += [connection.data(connection.secondary, *piece) for piece in cut(draft.rng, early, 3)] if early else []
    draft.its.append(connection.secondary.rst(early))


def _end(connection: Tcp, frame: bytes) -> int:
    seq = int.from_bytes(frame[38:42], "big")
    return (seq - connection.primary.iss - 1 & 0xFFFF_FFFF) + len(frame) - 34 - (frame[46] >> 4) * 4


def larger_window(draft: Draft) -> None:
    """The primary offers more than the secondary can take."""
    connection = Tcp.of(draft, open_it=False)
    connection.secondary.window = draft.rng.choice((0, 1000, 7999))
    if draft.rng.random() < 0.5:
        connection.open()
    connection.send(like=True)
    connection.end()


def smaller_window(draft: Draft) -> None:
    connection = Tcp.of(draft)
    connection.secondary.window = 9000
    connection.send(like=True)
    connection.end()


def used_anew(draft: Draft) -> None:
    """The four-tuple serves a second connection, whose numbers are higher or lower; its data are equal or not."""
    rng = draft.rng
    connection = Tcp.of(draft, open_it=True, iss=0x5000_0000)
    connection.secondary.iss = connection.primary.iss
    connection.send(like=True)
    for guest, frames in ((connection.primary, draft.mine), (connection.secondary, draft.its)):
        frames.append(guest.fin(len(connection.stream)))
    one, other = connection.primary, connection.secondary
    one.iss = other.iss = rng.choice((0x4000_0000, 0x6000_0000))
    draft.mine.append(one.syn_ack())
    draft.its.append(other.syn_ack())
    draft.order = "steps"
    if rng.random() < 0.5:
        connection.send(like=True)
    else:
        draft.asked = True
        draft.hold(one.data(0, b"PRIMARY"))
        draft.its.append(other.data(0, b"SECONDA"))


def looks_different(draft: Draft) -> None:
    """IP identification, TTL, TOS, options, urgent pointer, checksum: none of it is a difference."""
    connection = Tcp.of(draft)
    start = len(draft.mine)
    connection.send(like=True)
    connection.end()
    for index in range(start, len(draft.its)):
        frame = bytearray(draft.its[index])
        frame[15] ^= 4
        frame[22] = 63
        frame[24:26] = b"\x12\x34"
        frame[50:52] = b"\x55\x66"
        draft.its[index] = bytes(frame)


def padded(draft: Draft) -> None:
    """Frames as short as Ethernet lets them be, padded to 60 bytes by one machine's network card or by both's."""
    connection = Tcp.of(draft)
    connection.stream = connection.stream[: draft.rng.randrange(1, 9)]
    if len(connection.stream) == 1:
        connection.stream += b"x"
    connection.send(like=draft.rng.random() < 0.6)
    connection.end()
    if draft.rng.random() < 0.7:
        draft.mine = [pad(draft.rng, frame) for frame in draft.mine]
    if draft.rng.random() < 0.7:
        draft.its = [pad(draft.rng, frame) for frame in draft.its]


KINDS: Final[tuple[Callable[[Draft], None], ...]] = (
    set_up, set_up_with_other_options, set_up_refused_by_one, set_up_by_one, data_cut_alike, data_cut_differently,
    data_in_turns, retransmitted, retransmitted_with_more, retransmitted_with_other_bytes, one_byte_different,
    secondary_behind, secondary_ahead, piece_missing, out_of_order, wrapping, ending_at_zero, acknowledgement_ahead,
    secondary_acknowledges_more, ended, ended_by_the_primary, ended_early_by_the_secondary, reset,
    reset_by_the_primary, reset_elsewhere, larger_window, smaller_window, used_anew, looks_different, padded,
)  # fmt: skip
