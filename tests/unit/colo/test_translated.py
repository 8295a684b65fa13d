"""The clients' link after a failover, as the survivor sees it."""

from __future__ import annotations

import pytest

from colo.translated import TranslatedLink
from pystack.link import memory
from pystack.link.memory import MemoryLink
from pystack.wire.packet import ACK
from tests.unit.colo.test_proxy import FROM_CLIENT, OFFSET, Rig, parsed

MASK = 0xFFFF_FFFF
QUEUE = 8


@pytest.fixture
def rig() -> Rig:
    """A connection to a pair whose primary has gone."""
    rig = Rig()
    rig.open()
    rig.proxy.primary_failed(rig.now)
    return rig


@pytest.fixture
def ends() -> tuple[MemoryLink, MemoryLink]:
    """The clients' end, and the pair's."""
    return memory.pair(queue_frames=QUEUE)


def get() -> bytes:
    return FROM_CLIENT.tcp(sport=5000, dport=80, seq=7000, ack=1001, flags=ACK, payload=b"GET")


def test_each_side_hears_the_numbers_that_it_knows(rig: Rig, ends: tuple[MemoryLink, MemoryLink]) -> None:
    clients, near = ends
    link = TranslatedLink(near, rig.proxy)
    link.recv(0)  # what the failover itself has repeated
    clients.send([(get(),)], 0)
    (heard,) = map(parsed, link.recv(0))
    assert (heard.ack, heard.payload_bytes()) == ((1001 + OFFSET) & MASK, b"GET")
    said = rig.s.data(0, b"hello")
    assert link.send([(said[:20], said[20:])], 0) == 1
    (told,) = map(parsed, clients.recv(0))
    assert (told.seq, told.payload_bytes()) == (1001, b"hello")


def test_what_finds_no_room_goes_later(rig: Rig, ends: tuple[MemoryLink, MemoryLink]) -> None:
    clients, near = ends
    link = TranslatedLink(near, rig.proxy)
    frames = [(rig.s.data(at, b"x"),) for at in range(QUEUE + 3)]
    assert link.send(frames, 0) == len(frames)
    assert link.wants_write()
    assert len(clients.recv(0)) == QUEUE
    assert link.send([], 0) == 0
    assert [parsed(frame).seq for frame in clients.recv(0)] == [1001 + QUEUE + at for at in range(3)]
    assert not link.wants_write()


def test_a_link_that_never_has_room_costs_no_memory(
    rig: Rig, ends: tuple[MemoryLink, MemoryLink], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("colo.translated._MAX_UNSENT", 5)
    link = TranslatedLink(ends[1], rig.proxy)
    link.send([(rig.s.data(at, b"x"),) for at in range(QUEUE + 7)], 0)
    assert rig.proxy.counters["proxy.link_full"] == 2


def test_time_goes_on_for_the_old_proxy(rig: Rig, ends: tuple[MemoryLink, MemoryLink]) -> None:
    """A connection that is silent for as long as it may be is forgotten, and its numbers with it."""
    link = TranslatedLink(ends[1], rig.proxy)
    assert rig.proxy.tracker.live == 1
    now = 0
    for _ in range(20):
        due = link.next_timeout()
        if due is None:
            break
        now = max(now, due)
        link.recv(now)
    assert rig.proxy.tracker.live == 0
    assert link.next_timeout() is None
    assert (link.info, link.fileno()) == (ends[1].info, ends[1].fileno())
    link.close()
