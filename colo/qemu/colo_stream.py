"""QEMU's COLO protocol as it goes by in the migration stream: where a checkpoint begins, and when it has been loaded.

Read before editing: migration/colo.c of QEMU, and COLOMessage in its qapi/migration.json. After the first migration
both ends of the stream speak in turns, in messages of 32 bits, big-endian:

    primary                               secondary
                                          checkpoint-ready      runs from here on     entered
    resumes
    checkpoint-request                                                                requested
                                          checkpoint-reply      has stopped
    vmstate-send          has stopped                                                 both stopped
    memory, vmstate-size, devices
                                          vmstate-received
                                          vmstate-loaded        runs again            loaded
    resumes

Where the migration has the capability return-path, which QEMU 11 asks for, the secondary first speaks the protocol of
that: 16 bits of type, 16 of length, and as many bytes (migration/migration.c, `enum mig_rp_message_type`). No type is
0, so that the first word of COLO is told from it.

What the primary sends between ``vmstate-send`` and the end of its devices is memory, in a form that is of no interest
here: it says nothing more until it has heard ``vmstate-loaded``. So whoever stands in the stream and holds back what he
reads knows of every boundary before either machine goes on, however late he reads.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Final, final

from pystack import Counters

_WORD: Final = 4
_RETURN_PATH_TYPES: Final = range(1, 16)  # 11.1 has seven
_RETURN_PATH_BYTES: Final = 512  # of the longest message that QEMU reads


class Message(IntEnum):
    """COLOMessage, since QEMU 3.0."""

    CHECKPOINT_READY = 0
    CHECKPOINT_REQUEST = 1
    CHECKPOINT_REPLY = 2
    VMSTATE_SEND = 3
    VMSTATE_SIZE = 4
    VMSTATE_RECEIVED = 5
    VMSTATE_LOADED = 6


class Event(Enum):
    """What is known before the bytes that say so are handed on."""

    ENTERED = "entered"
    """The first copy was made: the secondary runs, the primary stands still until it hears of it."""
    REQUESTED = "requested"
    """A checkpoint begins. Both run."""
    SECONDARY_STOPPED = "secondary stopped"
    """What it has sent up to here belongs before this checkpoint. Told only where it is asked for."""
    BOTH_STOPPED = "both stopped"
    """Nothing that either machine has sent up to here belongs behind this checkpoint, and nothing later before it."""
    LOADED = "loaded"
    """The secondary runs as a copy of the primary, which stands still until it hears of it."""
    BROKEN = "broken"
    """This is not the protocol. What follows is handed on as it is, and nothing is known any more."""


Piece = bytes | Event
"""Bytes to hand on, or what must be known before the bytes behind it are."""

_FROM_SECONDARY: Final = {
    Message.CHECKPOINT_READY: {Message.CHECKPOINT_REPLY},
    Message.CHECKPOINT_REPLY: {Message.VMSTATE_RECEIVED},
    Message.VMSTATE_RECEIVED: {Message.VMSTATE_LOADED},
    Message.VMSTATE_LOADED: {Message.CHECKPOINT_REPLY},
}
"""What may follow what."""


@final
class ColoStream:
    """Both directions of one migration.

    Args:
        stops: whether to tell of `Event.SECONDARY_STOPPED`, for whoever stands beside the secondary.
        prompt: whether to hand ``vmstate-loaded`` on before `Event.LOADED` is told. The secondary runs already, and by
            as much as the primary runs later, its clock is behind the secondary's until the next checkpoint. For
            whoever knows without the primary standing still what it had sent before: see `pystack.QemuLink.mark`.

    Attributes:
        undecided: both stand still for a checkpoint of which nobody knows yet whether the secondary will be a copy.
        entered: the first copy was made. broken: see `Event.BROKEN`.
        counters: ``engine.bad_message``.
    """

    def __init__(self, counters: Counters, *, stops: bool = False, prompt: bool = False) -> None:
        self.counters = counters
        self._prompt = prompt
        self._stops = stops
        self.undecided = False
        self.entered = False
        self.broken = False
        self._expected: Message | None = None  # of the primary; None: bulk goes by
        self._primary = b""  # an unfinished word
        self._secondary = b""
        self._return_path = 0  # bytes that are left of a message of the return path
        self._last: Message | None = None  # of the secondary

    def from_primary(self, data: bytes) -> list[Piece]:
        """Take what the primary has sent; returns what to do, in order."""
        pieces: list[Piece] = []
        while data and self._expected is not None and not self.broken:
            taken = _WORD - len(self._primary)
            self._primary, data = self._primary + data[:taken], data[taken:]
            if len(self._primary) < _WORD:
                return pieces
            word, self._primary = self._primary, b""
            self._word_of_primary(word, pieces)
        data, self._primary = self._primary + data, b""
        if data:
            pieces.append(data)
        return pieces

    def _word_of_primary(self, word: bytes, pieces: list[Piece]) -> None:
        if int.from_bytes(word, "big") != self._expected:
            self._break(pieces)
        elif self._expected is Message.CHECKPOINT_REQUEST:
            pieces.append(Event.REQUESTED)
            self._expected = Message.VMSTATE_SEND
        else:
            self.undecided = True
            pieces.append(Event.BOTH_STOPPED)
            self._expected = None
        pieces.append(word)

    def from_secondary(self, data: bytes) -> list[Piece]:
        """Take what the secondary has sent; returns what to do, in order."""
        pieces: list[Piece] = []
        data, self._secondary = self._secondary + data, b""
        at = 0
        while at < len(data):
            size = min(self._return_path, len(data) - at) or _WORD
            word = data[at : at + size]
            at += size
            if self._return_path:
                self._return_path -= size
                pieces.append(word)
                continue
            if len(word) < _WORD:
                self._secondary = word
                break
            self._word_of_secondary(word, pieces)
            pieces.append(word)
            if self._prompt and len(pieces) > 1 and pieces[-2] is Event.LOADED:
                pieces[-2:] = [word, Event.LOADED]
        return pieces

    def _word_of_secondary(self, word: bytes, pieces: list[Piece]) -> None:
        if self.broken:
            return
        value = int.from_bytes(word, "big")
        if self._last is None and value >> 16 in _RETURN_PATH_TYPES and value & 0xFFFF <= _RETURN_PATH_BYTES:
            self._return_path = value & 0xFFFF
            return
        may = {Message.CHECKPOINT_READY} if self._last is None else _FROM_SECONDARY[self._last]
        if value not in may:
            self._break(pieces)
            return
        self._last = Message(value)
        if self._last is Message.CHECKPOINT_READY:
            self.entered = True
            pieces.append(Event.ENTERED)
            self._expected = Message.CHECKPOINT_REQUEST
        elif self._last is Message.CHECKPOINT_REPLY and self._stops:
            pieces.append(Event.SECONDARY_STOPPED)
        elif self._last is Message.VMSTATE_LOADED:
            self.undecided = False
            pieces.append(Event.LOADED)
            self._expected = Message.CHECKPOINT_REQUEST

    def _break(self, pieces: list[Piece]) -> None:
        self.counters.bump("engine.bad_message")
        self.broken = True
        pieces.append(Event.BROKEN)
