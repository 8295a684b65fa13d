"""QEMU's filters between sockets: `colo mirror` and `colo rewrite`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, final

from colo.address import Address
from colo.channel import Channel, Hub
from colo.cutter import Cutter
from colo.framing import MAX_VNET_HDR_LEN
from pystack import Buffer, Counters, Micros
from pystack.drivers.aio import monotonic
from pystack.flow.rewriter import Rewriter, RewriterConfig
from pystack.link import qemu_framing
from pystack.wire.packet import Packet, parse_untrusted

_MAX_LINE_BYTES: Final = 256
_TICK: Final[Micros] = 1_000_000


@final
class MirrorServer:
    """Frames from ``in`` go to ``out``, and a copy to every other address.

    Who is not there, or does not read, misses frames, which its channel counts.

    Raises:
        UsageError: an address cannot be had.
    """

    def __init__(self, addresses: Mapping[str, Address], counters: Counters, *, vnet: bool = False) -> None:
        self.channels: dict[str, Channel] = {}
        self._cutter = Cutter(vnet=vnet, name="mirror", counters=counters)
        self._runs: list[Buffer] = []
        self.hub = Hub(self._after)
        prefix = 8 if vnet else 4
        try:
            for name, address in addresses.items():
                received, changed = (self._received, self._changed) if name == "in" else (None, None)
                self.channels[name] = Channel(
                    self.hub, address, name, counters, received=received, changed=changed, prefix=prefix
                )
            for channel in self.channels.values():
                channel.connect()
        except BaseException:
            self.close()
            raise
        self._outs = [channel for name, channel in self.channels.items() if name != "in"]

    def _received(self, data: bytes) -> None:
        self._runs += self._cutter.feed_untrusted(data)
        if self._cutter.error:
            self.channels["in"].disconnect()

    def _changed(self, _connected: bool) -> None:
        self._cutter.reset()

    def _after(self, _now: Micros) -> None:
        if self._runs:
            runs, self._runs = self._runs, []
            for channel in self._outs:
                channel.send(runs)

    def close(self) -> None:
        """Release every socket."""
        for channel in self.channels.values():
            channel.close()
        self.hub.close()


@final
class _Input:
    """One framed input of a rewriter: its decoder, which starts anew with each peer."""

    def __init__(self, name: str, *, vnet: bool, counters: Counters) -> None:
        self._name = name
        self._vnet = vnet
        self._counters = counters
        self._decoder = qemu_framing.FrameDecoder(vnet_hdr=vnet)

    def reset(self) -> None:
        """The stream starts anew."""
        self._decoder = qemu_framing.FrameDecoder(vnet_hdr=self._vnet)

    def feed_untrusted(self, data: bytes) -> list[qemu_framing.Framed]:
        """The frames that ``data`` completes, without those that are empty."""
        framed = self._decoder.feed(data)
        frames = [item for item in framed if item[1]]
        if len(frames) < len(framed):
            self._counters.bump(f"rewrite.{self._name}.empty", len(framed) - len(frames))
        if self._decoder.error is not None:
            self._counters.bump(f"rewrite.{self._name}.{self._decoder.error.reason.partition('.')[2]}")
        return frames

    @property
    def broken(self) -> bool:
        """Whether the stream cannot be followed any more."""
        return self._decoder.error is not None


@final
class RewriteServer:
    """A rewriter between sockets: the client's frames go to the guest in its own numbers, and back in the client's.

    Args:
        addresses: ``in_client``, ``out_guest``, ``in_guest``, ``out_client``; where there are, ``in_primary``, a copy
            of what the primary sends, and ``control``.

    Raises:
        UsageError: an address cannot be had.
    """

    def __init__(self, addresses: Mapping[str, Address], counters: Counters, *, vnet: bool = False) -> None:
        self.counters = counters
        self._vnet = vnet
        self._rewriter: Rewriter | None = None  # made with the first frame, whose header's length is the others' too
        self._line = b""
        self._to_guest: list[Buffer] = []
        self._to_client: list[Buffer] = []
        self.channels: dict[str, Channel] = {}
        self.hub = Hub(self._after)
        deals: dict[str, Callable[[Rewriter, Packet, Micros, int], None]] = {
            "in_client": self._from_client, "in_guest": self._from_guest, "in_primary": self._from_primary
        }  # fmt: skip
        try:
            for name, address in addresses.items():
                if name in deals:
                    self._open_input(name, address, deals[name])
                elif name == "control":
                    self._open(name, address, self._ordered, self._control_changed)
                else:
                    self._open(name, address, None, None)
            for channel in self.channels.values():
                channel.connect()
        except BaseException:
            self.close()
            raise
        self.hub.every(_TICK, self._tick)

    def _open(
        self,
        name: str,
        address: Address,
        received: Callable[[bytes], None] | None,
        changed: Callable[[bool], None] | None,
    ) -> None:
        prefix = 8 if self._vnet else 4
        self.channels[name] = Channel(
            self.hub, address, name, self.counters, received=received, changed=changed, prefix=prefix
        )

    def _open_input(self, name: str, address: Address, deal: Callable[[Rewriter, Packet, Micros, int], None]) -> None:
        side = _Input(name, vnet=self._vnet, counters=self.counters)

        def received(data: bytes) -> None:
            now = monotonic()
            for vnet_hdr_len, frame in side.feed_untrusted(data):
                packet = self._parse_untrusted(frame, vnet_hdr_len)
                if packet is not None:
                    deal(self._rewriter_for(vnet_hdr_len), packet, now, vnet_hdr_len)
                elif name != "in_primary":
                    out = self._to_guest if name == "in_client" else self._to_client
                    self._put(out, frame, vnet_hdr_len)
            if side.broken:
                self.channels[name].disconnect()

        def changed(_connected: bool) -> None:
            side.reset()

        self._open(name, address, received, changed)

    # ------------------------------------------------------------------------------------------------------- frames

    def _parse_untrusted(self, frame: bytes, vnet_hdr_len: int) -> Packet | None:
        """The packet; None for what is none, which passes as it is."""
        if vnet_hdr_len > MAX_VNET_HDR_LEN:
            self.counters.bump("rewrite.bad_vnet_hdr_len")
            return None
        return parse_untrusted(frame, vnet_hdr_len, self.counters)

    def _rewriter_for(self, vnet_hdr_len: int) -> Rewriter:
        if self._rewriter is None:
            self._rewriter = Rewriter(RewriterConfig(vnet_hdr_len=vnet_hdr_len), self.counters)
        return self._rewriter

    def _put(self, out: list[Buffer], frame: bytes, vnet_hdr_len: int) -> None:
        out.append(qemu_framing.header(len(frame), vnet_hdr_len if self._vnet else None))
        out.append(frame)

    def _from_client(self, rewriter: Rewriter, packet: Packet, now: Micros, vnet_hdr_len: int) -> None:
        frame = rewriter.to_secondary(packet, now)
        self._waiting(rewriter, vnet_hdr_len)
        if frame is not None:
            self._put(self._to_guest, frame, vnet_hdr_len)

    def _from_guest(self, rewriter: Rewriter, packet: Packet, now: Micros, vnet_hdr_len: int) -> None:
        self._put(self._to_client, rewriter.from_secondary(packet, now), vnet_hdr_len)
        self._waiting(rewriter, vnet_hdr_len)

    def _from_primary(self, rewriter: Rewriter, packet: Packet, now: Micros, vnet_hdr_len: int) -> None:
        rewriter.observe_primary(packet, now)
        self._waiting(rewriter, vnet_hdr_len)

    def _waiting(self, rewriter: Rewriter, vnet_hdr_len: int) -> None:
        for frame in rewriter.take_waiting():
            self._put(self._to_guest, frame, vnet_hdr_len)

    def _after(self, _now: Micros) -> None:
        to_guest, self._to_guest = self._to_guest, []
        to_client, self._to_client = self._to_client, []
        self.channels["out_guest"].send(to_guest)
        self.channels["out_client"].send(to_client)

    def _tick(self, now: Micros) -> None:
        if self._rewriter is not None:
            self._rewriter.tick(now)

    # ------------------------------------------------------------------------------------------------------ control

    def _control_changed(self, _connected: bool) -> None:
        self._line = b""

    def _ordered(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            self.channels["control"].send([self._obey_untrusted(line.strip())])
        if len(self._line) > _MAX_LINE_BYTES:
            self.channels["control"].disconnect()

    def _obey_untrusted(self, word: bytes) -> bytes:
        """Do what ``word`` says, and answer in one line."""
        if word not in (b"checkpoint", b"failover"):
            self.counters.bump("rewrite.unknown_word")
            return b"error: say checkpoint or failover\n"
        for name in ("in_primary", "in_guest", "in_client"):
            # What they sent before is in the sockets, and belongs before this.
            if name in self.channels:
                self.channels[name].drain()
        rewriter = self._rewriter
        if rewriter is not None:
            if word == b"checkpoint":
                rewriter.checkpoint()
            else:
                rewriter.failover(monotonic())
            self._waiting(rewriter, rewriter.config.vnet_hdr_len)
        self._after(0)
        return b"ok\n"

    def close(self) -> None:
        """Release every socket."""
        for channel in self.channels.values():
            channel.close()
        self.hub.close()
