"""A notify_dev peer may say anything in any pieces: nothing is raised, little is kept, and the pieces do not matter."""

from __future__ import annotations

from colo.checkpoint import CheckpointConfig, Checkpoints, State, Step
from colo.qemu.notify import CHECKPOINT, MAX_OUTPUT_BYTES, PROXY_INIT, NotifyClient, NotifyPeer
from fuzz import harness
from pystack.link.qemu_framing import MAX_FRAME_BYTES, encode

DICTIONARY = "notify.dict"

_CONFIG = CheckpointConfig(min_interval=3, retry_after=10, retry_max=40, completion_timeout=100)

SEEDS = [
    b"\x00\x00\x05" + encode(PROXY_INIT) + encode(CHECKPOINT) * 2 + encode(b"DO_CHECKPOINT"),
    b"\x01\x01\x00" + encode(PROXY_INIT, 0) + encode(b"", 0) + encode(CHECKPOINT, 0),
    b"\x00\x02\x20" + encode(CHECKPOINT) + (MAX_FRAME_BYTES + 1).to_bytes(4, "big") + encode(CHECKPOINT),
    b"\x01\x03\x07" + encode(CHECKPOINT, 0) + encode(b"\0" * 12 + CHECKPOINT, 12) + b"\0\0\0\1\0\0\0\2x",
    b"\x02\x00\x03" + encode(CHECKPOINT) * 8,
    b"\x07\x04\x09" + encode(PROXY_INIT, 0) * 4 + encode(CHECKPOINT, 0) * 2 + b"\0\0\0\x0f",
]


def _check_bounds(client: NotifyClient) -> None:
    assert client._decoder.buffered <= MAX_FRAME_BYTES + 8
    assert len(client._replies) <= MAX_OUTPUT_BYTES + 64
    assert len(client._steps) <= 5


def _pieces_do_not_matter(stream: bytes, step: int, *, vnet: bool) -> None:
    whole, cut = NotifyClient(vnet=vnet), NotifyClient(vnet=vnet)
    if stream:
        whole.feed(stream)
        _check_bounds(whole)
    for at in range(0, len(stream), step):
        cut.feed(stream[at : at + step])
        _check_bounds(cut)
    assert whole.error == cut.error
    assert whole.greeted == cut.greeted
    assert whole.counters.snapshot() == cut.counters.snapshot()
    assert whole.take_output() == cut.take_output()
    assert whole.poll(0) == cut.poll(0)


def _the_pair_stays_sound(stream: bytes, step: int, *, vnet: bool, vanishing: bool) -> None:
    """Requests, time and vanishing in between: the owner sees steps in order, and a good peer serves all in the end."""
    client = NotifyClient(vnet=vnet)
    checkpoints = Checkpoints(client, _CONFIG)
    paused = False
    now = 0
    for at in range(0, len(stream), step):
        now += 1 + (stream[at] & 31)
        if stream[at] & 32:
            checkpoints.request("payload", now)
        client.feed(stream[at : at + step])
        if client.error or (vanishing and stream[at] & 64):
            client.disconnect()
        client.take_output()
        for taken in checkpoints.advance(now):
            assert taken is not Step.COMPLETED or paused
            paused = taken is Step.PAUSED
        _check_bounds(client)
    client.disconnect()
    client.connect()
    peer = NotifyPeer(vnet=vnet)
    for _ in range(4):
        now += _CONFIG.completion_timeout
        checkpoints.advance(now)
        now += _CONFIG.retry_max
        checkpoints.advance(now)
        peer.feed(client.take_output())
        if peer.requests:
            peer.requests = 0
            peer.checkpoint()
            client.feed(peer.take_output())
            checkpoints.advance(now)
    assert not peer.unknown
    assert checkpoints.waiting == checkpoints.covered == 0
    assert checkpoints.state in (State.RUNNING, State.RESUMED)


def target(data: bytes) -> None:
    """The first byte chooses the framing and whether the peer vanishes, the next two the pieces; then the stream."""
    if len(data) < 3:
        return
    choice, step, other, stream = data[0], data[1] + 1, data[2] + 1, data[3:]
    vnet, vanishing = bool(choice & 1), bool(choice & 2)
    _pieces_do_not_matter(stream, step, vnet=vnet)
    _the_pair_stays_sound(stream, other, vnet=vnet, vanishing=vanishing)


if __name__ == "__main__":
    harness.main(__file__, target, include=["pystack.link", "colo"], seeds=SEEDS)
