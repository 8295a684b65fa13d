"""Whose Ethernet address an IPv4 neighbour has: the ARP cache, its resolver and its responder.

Read before editing: RFC 826 (packet reception), RFC 1122 section 2.3.2 (stale entries, at most one request a second for
a destination, the latest packet waits), RFC 5227 (probes and announcements).

States of an entry::

    (none) --lookup--> INCOMPLETE --answer--> REACHABLE --reachable_time, in use--> PROBE --answer--> REACHABLE
    INCOMPLETE, PROBE --3 requests without an answer--> INCOMPLETE while somebody waits, else SILENT while in use,
    else (none)
    SILENT --lookup--> INCOMPLETE; --no longer in use, looked at ever more rarely--> (none)

REACHABLE and unused goes at once. What TCP connections use (their `Path`) keeps the last address that was known while
the neighbour is silent: their own timers decide when to give up. A new address reaches all of them.

Learning: an answer only when somebody asked, a request only when it is for us; anything else may change an entry but
not make one. Nothing is learnt for an address that no neighbour may have: 0/8, loopback, multicast, broadcast, ours, or
one outside our networks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, final
from weakref import WeakSet

from pystack.clock import SECOND, Micros
from pystack.counters import Counters
from pystack.frame import LinkInfo, TxFrame
from pystack.net.addressing import UNSPECIFIED, Addressing
from pystack.net.path import Path
from pystack.net.txqueue import TxQueue
from pystack.timers import NEVER, Timers
from pystack.wire import arp, ethernet
from pystack.wire.packet import ETHERTYPE_IPV4, Packet

INCOMPLETE: Final = 0
REACHABLE: Final = 1
PROBE: Final = 2
SILENT: Final = 3

_REQUEST_INTERVAL: Final[Micros] = SECOND  # RFC 1122 section 2.3.2.1: at most one a second
_REQUESTS: Final = 3
_SETTLE_TIME: Final[Micros] = SECOND  # two hosts that quarrel about an address must not cost O(paths) each time
_BACKOFF_MAX: Final[Micros] = 32 * SECOND


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much the cache holds.

    Attributes:
        neighbours: entries. waiting: packets that wait for one unresolved neighbour; the oldest makes room.
        waiting_time: how long a packet waits before it is dropped. reachable_time: how long an answer is believed.
    """

    neighbours: int = 1024
    waiting: int = 16
    waiting_time: Micros = SECOND
    reachable_time: Micros = 60 * SECOND


@final
class Neighbour:
    """One entry, and a timer owner. ``mac`` is None while INCOMPLETE or SILENT and never otherwise.

    Attributes:
        settled_at: until then a change of ``mac`` is not believed.
        paths: living paths through this neighbour, whoever owns them.
        waiting: (since when, frame whose first 12 Ethernet bytes are still missing).
    """

    __slots__ = (
        "_table", "address", "armed_at", "deadline", "mac", "paths", "requests", "settled_at", "state", "used",
        "waiting",
    )  # fmt: skip

    def __init__(self, table: NeighbourTable, address: bytes) -> None:
        self._table = table
        self.address = address
        self.state = INCOMPLETE
        self.mac: bytes | None = None
        self.requests = 0
        self.used = False
        self.settled_at: Micros = 0
        self.paths: WeakSet[Path] = WeakSet()
        self.waiting: deque[tuple[Micros, TxFrame]] = deque()
        self.deadline: Micros = NEVER
        self.armed_at: Micros = NEVER

    @property
    def in_use(self) -> bool:
        """Whether a path that is in use goes through here."""
        return any(path.in_use for path in self.paths)

    @property
    def is_awaited(self) -> bool:
        """Whether a packet, or a connection that never knew the address, waits for it."""
        return bool(self.waiting) or any(path.in_use and not path.ready for path in self.paths)

    def on_timer(self, now: Micros) -> None:
        """Ask again, ask anew, or go."""
        self._table.on_neighbour_timer(self, now)


@final
class NeighbourTable:
    """The ARP cache of one stack.

    Args:
        answers: whether a request for (target) from (asker) is answered although the target is not our own address.
    """

    __slots__ = (
        "_addressing", "_answers", "_counters", "_link", "_mac", "_neighbours", "_ready", "_timers", "_tx", "limits",
    )  # fmt: skip

    def __init__(
        self,
        mac: bytes,
        addressing: Addressing,
        link: LinkInfo,
        tx: TxQueue,
        timers: Timers,
        counters: Counters,
        limits: Limits,
        answers: Callable[[bytes, bytes], bool],
    ) -> None:
        self._mac = mac
        self._addressing = addressing
        self._link = link
        self._tx = tx
        self._timers = timers
        self._counters = counters
        self._answers = answers
        self._neighbours: dict[bytes, Neighbour] = {}
        self._ready: list[Path] = []
        self.limits = limits

    def __len__(self) -> int:
        return len(self._neighbours)

    def __iter__(self) -> Iterator[Neighbour]:
        return iter(list(self._neighbours.values()))

    # ------------------------------------------------------------------------------------------------------- sending

    def attach(self, path: Path, hop: bytes, now: Micros) -> None:
        """Give ``path`` the Ethernet address of ``hop``, now or (see `take_ready`) when it becomes known."""
        neighbour = self._lookup(hop, now)
        if neighbour is None:
            return
        neighbour.paths.add(path)
        path.dst_mac = neighbour.mac

    def take_ready(self) -> list[Path]:
        """Paths that became ready since the last call."""
        if not self._ready:
            return []
        ready, self._ready = self._ready, []
        return ready

    def send(self, hop: bytes, frame: TxFrame, now: Micros) -> bool:
        """Send ``frame``, an IPv4 packet without its Ethernet header, to ``hop``, now or when its address is known.

        ``frame[0]`` is the virtio_net_hdr (b"" without one), the rest the packet. Returns False when it was dropped.
        """
        neighbour = self._lookup(hop, now)
        if neighbour is None:
            return False
        if neighbour.mac is not None:
            return self._tx.put(self._framed(neighbour.mac, frame))
        if len(neighbour.waiting) >= self.limits.waiting:
            # RFC 1122 section 2.3.2.2: the latest packet is the one worth keeping.
            neighbour.waiting.popleft()
            self._counters.bump("arp.waiting_dropped")
        neighbour.waiting.append((now, frame))
        return True

    def _framed(self, mac: bytes, frame: TxFrame) -> TxFrame:
        vnet, head, *rest = frame
        return (b"".join((vnet, ethernet.build_header(mac, self._mac, ETHERTYPE_IPV4), head)), *rest)

    def _lookup(self, address: bytes, now: Micros) -> Neighbour | None:
        """The entry of ``address``, made (and asked for) when there is none; None when there is no room for it."""
        neighbour = self._neighbours.get(address)
        if neighbour is None:
            neighbour = self._insert(address)
            if neighbour is None:
                return None
            self._request(neighbour, now)
        elif neighbour.state == SILENT:
            neighbour.state = INCOMPLETE
            neighbour.requests = 0
            self._request(neighbour, now)
        neighbour.used = True
        return neighbour

    def _insert(self, address: bytes) -> Neighbour | None:
        if len(self._neighbours) >= self.limits.neighbours and not self._evict():
            self._counters.bump("arp.table_full")
            return None
        neighbour = self._neighbours[address] = Neighbour(self, address)
        return neighbour

    def _evict(self) -> bool:
        """Make room: the oldest entry that no connection goes through."""
        for neighbour in self._neighbours.values():
            if not neighbour.in_use:
                self._remove(neighbour)
                self._counters.bump("arp.evicted")
                return True
        return False

    def _remove(self, neighbour: Neighbour) -> None:
        del self._neighbours[neighbour.address]
        if neighbour.waiting:
            self._counters.bump("arp.waiting_dropped", len(neighbour.waiting))
            neighbour.waiting.clear()
        neighbour.deadline = NEVER

    def _request(self, neighbour: Neighbour, now: Micros) -> None:
        """Ask once, and arrange for what comes when there is no answer."""
        source = self._addressing.source_for(neighbour.address)
        assert source is not None  # only neighbours on a network of ours get an entry
        neighbour.requests += 1
        # Unanswered for long, with connections that still wait: ask ever more rarely.
        pause = min(_REQUEST_INTERVAL << max(0, neighbour.requests - _REQUESTS), _BACKOFF_MAX)
        neighbour.deadline = now + pause
        self._timers.arm(neighbour)
        self._counters.bump("arp.requests_sent")
        # RFC 1122 section 2.3.2.1 (4): a neighbour that is known is asked alone.
        to = neighbour.mac or ethernet.BROADCAST
        self._put(arp.build_request(sha=self._mac, spa=source, tpa=neighbour.address, dst=to))

    def _put(self, frame: bytes) -> None:
        self._tx.put((bytes(self._link.vnet_hdr_len) + frame,))

    # -------------------------------------------------------------------------------------------------------- timers

    def on_neighbour_timer(self, neighbour: Neighbour, now: Micros) -> None:
        """The next step of an entry whose deadline has come."""
        neighbour.deadline = NEVER
        if neighbour.state == REACHABLE:
            if neighbour.used or neighbour.in_use:
                neighbour.used = False
                neighbour.state = PROBE
                neighbour.requests = 0
                self._request(neighbour, now)
            else:
                self._remove(neighbour)
            return
        if neighbour.state == SILENT:
            self._fall_silent(neighbour, now)
            return
        self._drop_overdue(neighbour, now)
        if neighbour.requests == _REQUESTS:
            self._counters.bump("arp.unresolved")
        if neighbour.requests >= _REQUESTS:
            neighbour.mac = None
            if not neighbour.is_awaited:
                self._fall_silent(neighbour, now)
                return
            neighbour.state = INCOMPLETE
        self._request(neighbour, now)

    def _fall_silent(self, neighbour: Neighbour, now: Micros) -> None:
        """Nobody asks for ``neighbour`` any more; its entry stays for the sake of the paths that are in use."""
        if not neighbour.in_use:
            self._remove(neighbour)
            return
        if neighbour.state != SILENT:
            neighbour.state = SILENT
            neighbour.requests = _REQUESTS
        neighbour.deadline = now + (self.limits.reachable_time << neighbour.requests - _REQUESTS)
        neighbour.requests += 1
        self._timers.arm(neighbour)

    def _drop_overdue(self, neighbour: Neighbour, now: Micros) -> None:
        waiting = neighbour.waiting
        while waiting and waiting[0][0] + self.limits.waiting_time <= now:
            waiting.popleft()
            self._counters.bump("arp.waiting_dropped")

    # ------------------------------------------------------------------------------------------------------ learning

    def on_arp_untrusted(self, packet: Packet, now: Micros) -> None:
        """Take one ARP frame that is for us or for all (RFC 826, "Packet Reception")."""
        message = arp.parse_untrusted(packet.frame, packet.l3, packet.end, self._counters)
        if message is None:
            return
        if ethernet.is_group(message.sha) or not any(message.sha) or message.sha == self._mac:
            self._counters.bump("arp.bad_sender")
            return
        for_us = message.tpa in self._addressing.own
        if message.spa == UNSPECIFIED:
            # A probe (RFC 5227 section 2.1.1): whoever asks has no address yet, and none of others' is to be defended.
            if message.op == arp.REQUEST and for_us:
                self._reply(message)
            else:
                self._counters.bump("arp.ignored")
            return
        if message.spa in self._addressing.own:
            self._counters.bump("arp.address_conflict")
            return
        if not self._addressing.is_valid_peer(message.spa):
            self._counters.bump("arp.bad_sender")
            return
        announcement = message.spa == message.tpa
        if message.op == arp.REQUEST:
            answer = not announcement and (for_us or self._answers_for(message.tpa, message.spa))
            self._learn(message.spa, message.sha, now, may_insert=answer)
            if answer:
                self._reply(message)
        elif message.op == arp.REPLY:
            known = message.spa in self._neighbours
            if not known:
                self._counters.bump("arp.unsolicited")
            elif announcement or for_us:
                self._learn(message.spa, message.sha, now, may_insert=False)
            else:
                self._counters.bump("arp.ignored")
        else:
            self._counters.bump("arp.ignored")

    def learn_from_ip(self, address: bytes, mac: bytes, now: Micros) -> None:
        """Take the Ethernet source of a packet for that of its IPv4 source: for a link with a single guest on it."""
        neighbour = self._neighbours.get(address)
        if neighbour is None or neighbour.mac != mac:
            self._learn(address, mac, now, may_insert=True)

    def _answers_for(self, target: bytes, asker: bytes) -> bool:
        return (
            self._addressing.is_valid_peer(target) and target not in self._neighbours and self._answers(target, asker)
        )

    def _reply(self, message: arp.Arp) -> None:
        self._counters.bump("arp.replies_sent")
        self._put(arp.build_reply(sha=self._mac, spa=message.tpa, tha=message.sha, tpa=message.spa))

    def _learn(self, address: bytes, mac: bytes, now: Micros, *, may_insert: bool) -> None:
        if ethernet.is_group(mac) or mac == self._mac or address in self._addressing.own:
            return
        if not self._addressing.is_valid_peer(address) or not self._addressing.is_on_link(address):
            return
        neighbour = self._neighbours.get(address)
        if neighbour is None:
            neighbour = self._insert(address) if may_insert else None
            if neighbour is None:
                return
        if neighbour.mac != mac:
            if neighbour.mac is None:
                self._counters.bump("arp.learned")
            elif now < neighbour.settled_at:
                self._counters.bump("arp.contested")
                return
            else:
                self._counters.bump("arp.changed")
                neighbour.settled_at = now + _SETTLE_TIME
            self._move(neighbour, mac)
        neighbour.state = REACHABLE
        neighbour.requests = 0
        neighbour.deadline = now + self.limits.reachable_time
        self._timers.arm(neighbour)
        self._send_waiting(neighbour, mac, now)

    def _move(self, neighbour: Neighbour, mac: bytes) -> None:
        """Lead all paths through ``neighbour`` to its new address. O(paths)."""
        neighbour.mac = mac
        for path in neighbour.paths:
            if not path.ready:
                self._ready.append(path)
            path.dst_mac = mac

    def _send_waiting(self, neighbour: Neighbour, mac: bytes, now: Micros) -> None:
        while neighbour.waiting:
            since, frame = neighbour.waiting.popleft()
            if since + self.limits.waiting_time <= now:
                self._counters.bump("arp.waiting_dropped")
            else:
                self._tx.put(self._framed(mac, frame))
