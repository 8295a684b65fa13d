"""QEMU's ``notify_dev`` protocol: how a comparator and whoever takes the checkpoints talk to each other. Sans-I/O.

Made for Xen, and open to any checkpointer (net/colo-compare.c: compare_notify_rs_finalize, notify_remote_frame). Each
message is exact ASCII without a NUL, framed as `pystack.link.qemu_framing` describes:

    checkpointer -> comparator   COLO_USERSPACE_PROXY_INIT     are you there? answered by
    comparator -> checkpointer   COLO_COMPARE_GET_XEN_INIT
    comparator -> checkpointer   DO_CHECKPOINT                 a checkpoint is wanted
    checkpointer -> comparator   COLO_CHECKPOINT               both machines stand still and the state is sent

    00 00 00 0d  44 4f 5f 43 48 45 43 4b 50 4f 49 4e 54        DO_CHECKPOINT

With ``vnet_hdr_support`` the checkpointer's messages carry a vnet_hdr_len word after the length, as all that QEMU
reads, whereas the comparator's never do:

    00 00 00 0f  00 00 00 00  43 4f 4c 4f 5f 43 ...            COLO_CHECKPOINT

The protocol has no word for the end of the pause and no answer to COLO_CHECKPOINT. A checkpointer must therefore let
both machines stand until the comparator has read it, or what they send next may be taken for what they sent before.
"""

from __future__ import annotations

from typing import Final, final

from colo.checkpoint import Step
from colo.clients import AT_ONCE
from pystack import Counters, Micros
from pystack.link.qemu_framing import FrameDecoder, encode

__all__ = ["NotifyClient", "NotifyPeer"]

PROXY_INIT: Final = b"COLO_USERSPACE_PROXY_INIT"
XEN_INIT: Final = b"COLO_COMPARE_GET_XEN_INIT"
DO_CHECKPOINT: Final = b"DO_CHECKPOINT"
CHECKPOINT: Final = b"COLO_CHECKPOINT"

MAX_OUTPUT_BYTES: Final = 4096
"""Answers that wait to be taken; a peer that greets without end gets no more than that."""

_WHOLE: Final = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]
_BROKEN: Final = {"qemu.too_long": "notify.too_long", "qemu.bad_vnet_hdr_len": "notify.bad_vnet_hdr_len"}


@final
class NotifyClient:
    """The comparator's end, as a `colo.checkpoint.CheckpointClient`.

    COLO_CHECKPOINT gives the steps PAUSED, COMPLETED and RESUMED at once, also when nobody asked for it; several that
    come between two polls are one, since nothing was judged in between. Whatever else the peer says is counted. A peer
    that goes away, or whose stream cannot be followed any more, makes the checkpoint that it owes fail, and each one
    that is asked for before the next has connected. Holds no more than one message and `MAX_OUTPUT_BYTES`, whatever
    arrives.

    Args:
        vnet: whether messages to the comparator carry a vnet_hdr_len word (QEMU's ``vnet_hdr_support``).

    Attributes:
        counters: ``notify.*``.
        connected: whether there is a peer.
        error: why its stream cannot be followed any more, a counter's name; "" while it can. The driver should then
        close
            the connection and call `disconnect`.
        greeted: whether this peer has said COLO_USERSPACE_PROXY_INIT. QEMU does not insist on it, nor does this.
    """

    __slots__ = (
        "_asked",
        "_decoder",
        "_owed",
        "_replies",
        "_steps",
        "_vnet",
        "connected",
        "counters",
        "error",
        "greeted",
    )

    def __init__(self, *, vnet: bool = False, counters: Counters | None = None) -> None:
        self.counters = Counters() if counters is None else counters
        self.connected = False
        self.error = ""
        self.greeted = False
        self._vnet = vnet
        self._decoder = FrameDecoder(vnet_hdr=vnet)
        self._replies = bytearray()
        self._asked = False  # DO_CHECKPOINT waits to be taken
        self._owed = False  # a checkpoint was asked for and has not come
        self._steps: list[Step] = []

    def connect(self) -> None:
        """A peer has connected. The framing starts anew."""
        self.disconnect()
        self.connected = True
        self.counters.bump("notify.connected")

    def disconnect(self) -> None:
        """The peer is gone; may be repeated. What it sent of a message is forgotten, and what it was to be told."""
        if self._decoder.buffered and not self.error:
            self.counters.bump("notify.cut")
        if self.connected:
            self.counters.bump("notify.disconnected")
        self.connected = self.greeted = self._asked = False
        self.error = ""
        self._decoder = FrameDecoder(vnet_hdr=self._vnet)
        self._replies.clear()
        self._fail_owed()

    def feed(self, data: bytes) -> None:
        """Take a part of the peer's stream, cut anywhere. Never raises."""
        if self.error:
            return
        if not self.connected:
            self.connect()
        for _, message in self._decoder.feed(data):
            if message == CHECKPOINT:
                self._on_checkpoint()
            elif message == PROXY_INIT:
                self._on_init()
            else:
                self.counters.bump("notify.unknown")
        if self._decoder.error is not None:
            self.error = _BROKEN[self._decoder.error.reason]
            self.counters.bump(self.error)
            self._fail_owed()

    def _on_checkpoint(self) -> None:
        self.counters.bump("notify.checkpoint" if self._owed else "notify.unasked")
        self._owed = self._asked = False
        if self._steps[-3:] != _WHOLE:
            self._steps += _WHOLE

    def _on_init(self) -> None:
        self.greeted = True
        if len(self._replies) >= MAX_OUTPUT_BYTES:
            self.counters.bump("notify.not_answered")
            return
        self.counters.bump("notify.greeted")
        self._replies += encode(XEN_INIT)

    def _fail_owed(self) -> None:
        if self._owed:
            self._owed = False
            self._steps.append(Step.FAILED)

    def take_output(self) -> bytes:
        """What to send to the peer, in whole messages. Taken is sent: do not take more than the connection accepts."""
        output = bytes(self._replies)
        self._replies.clear()
        if self._asked:
            self._asked = False
            output += encode(DO_CHECKPOINT)
        return output

    def begin(self, reason: str, now: Micros) -> None:  # noqa: ARG002 - the protocol's form
        """Say DO_CHECKPOINT; without a peer that would understand it the checkpoint fails at once."""
        self._owed = True
        if not self.connected or self.error:
            self.counters.bump("notify.no_peer")
            self._fail_owed()
        elif not self._asked:
            self._asked = True
            self.counters.bump("notify.asked")

    def poll(self, now: Micros) -> list[Step]:  # noqa: ARG002 - the protocol's form
        """See `colo.checkpoint.CheckpointClient`."""
        steps, self._steps = self._steps, []
        return steps

    def next_timeout(self) -> Micros | None:
        """See `colo.checkpoint.CheckpointClient`."""
        return AT_ONCE if self._steps else None


@final
class NotifyPeer:
    """The checkpointer's end: whoever pauses the machines and copies one onto the other. For tests and demos.

    Args:
        vnet: whether the comparator expects a vnet_hdr_len word (``vnet_hdr_support=on``).

    Attributes:
        greeted: how often the comparator has answered `greet`. requests: how many checkpoints it has asked for.
        unknown: messages that are neither. error: whether its stream cannot be followed any more.
    """

    __slots__ = ("_decoder", "_output", "_vnet_hdr_len", "greeted", "requests", "unknown")

    def __init__(self, *, vnet: bool = False) -> None:
        self._decoder = FrameDecoder()
        self._vnet_hdr_len = 0 if vnet else None
        self._output = bytearray()
        self.greeted = 0
        self.requests = 0
        self.unknown = 0

    @property
    def error(self) -> bool:
        """See the class."""
        return self._decoder.error is not None

    def greet(self) -> None:
        """Say COLO_USERSPACE_PROXY_INIT."""
        self.send(PROXY_INIT)

    def checkpoint(self) -> None:
        """Say COLO_CHECKPOINT: both machines stand still and the state is sent."""
        self.send(CHECKPOINT)

    def send(self, message: bytes) -> None:
        """Send any message."""
        self._output += encode(message, self._vnet_hdr_len)

    def feed(self, data: bytes) -> None:
        """Take a part of the comparator's stream, cut anywhere."""
        for _, message in self._decoder.feed(data):
            if message == DO_CHECKPOINT:
                self.requests += 1
            elif message == XEN_INIT:
                self.greeted += 1
            else:
                self.unknown += 1

    def take_output(self) -> bytes:
        """What to send to the comparator."""
        output = bytes(self._output)
        self._output.clear()
        return output
