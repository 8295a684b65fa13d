"""QEMU's notify_dev protocol: its bytes, what they lead to, and peers that talk nonsense or vanish."""

from __future__ import annotations

import pytest

from colo.checkpoint import CheckpointConfig, Checkpoints, State, Step
from colo.qemu.notify import MAX_OUTPUT_BYTES, NotifyClient, NotifyPeer
from pystack.link.qemu_framing import MAX_FRAME_BYTES, encode

WHOLE = [Step.PAUSED, Step.COMPLETED, Step.RESUMED]
CONFIG = CheckpointConfig()
INIT = b"\x00\x00\x00\x19COLO_USERSPACE_PROXY_INIT"
XEN_INIT = b"\x00\x00\x00\x19COLO_COMPARE_GET_XEN_INIT"
DO_CHECKPOINT = b"\x00\x00\x00\x0dDO_CHECKPOINT"
CHECKPOINT = b"\x00\x00\x00\x0fCOLO_CHECKPOINT"
VNET_CHECKPOINT = b"\x00\x00\x00\x0f\x00\x00\x00\x00COLO_CHECKPOINT"


def connected(*, vnet: bool = False) -> NotifyClient:
    client = NotifyClient(vnet=vnet)
    client.connect()
    return client


def carry(client: NotifyClient, peer: NotifyPeer, piece: int = 1 << 20) -> None:
    """Everything that both have to say, in pieces of so many bytes."""
    to_peer, to_client = client.take_output(), peer.take_output()
    for at in range(0, len(to_peer), piece):
        peer.feed(to_peer[at : at + piece])
    for at in range(0, len(to_client), piece):
        client.feed(to_client[at : at + piece])


# ----------------------------------------------------------------------------------------------------------- the bytes


def test_the_greeting_is_answered() -> None:
    client = connected()
    client.feed(INIT)
    assert client.greeted
    assert client.take_output() == XEN_INIT
    assert client.take_output() == b""
    assert client.poll(0) == []
    assert client.counters.snapshot() == {"notify.connected": 1, "notify.greeted": 1}


def test_a_checkpoint_is_asked_for_and_comes() -> None:
    client = connected()
    client.begin("payload", 0)
    assert client.take_output() == DO_CHECKPOINT
    client.feed(CHECKPOINT)
    assert client.next_timeout() == 0
    assert client.poll(0) == WHOLE
    assert client.next_timeout() is None
    assert client.counters.snapshot() == {"notify.connected": 1, "notify.asked": 1, "notify.checkpoint": 1}


def test_only_what_comes_in_carries_the_vnet_word() -> None:
    client = connected(vnet=True)
    client.begin("payload", 0)
    assert client.take_output() == DO_CHECKPOINT
    client.feed(VNET_CHECKPOINT)
    assert client.poll(0) == WHOLE
    client.feed(b"\x00\x00\x00\x19\x00\x00\x00\x00COLO_USERSPACE_PROXY_INIT")
    assert client.take_output() == XEN_INIT


def test_the_peers_role_has_the_same_asymmetry() -> None:
    peer = NotifyPeer(vnet=True)
    peer.checkpoint()
    assert peer.take_output() == VNET_CHECKPOINT
    peer.feed(DO_CHECKPOINT + XEN_INIT)
    assert (peer.requests, peer.greeted, peer.unknown) == (1, 1, 0)
    plain = NotifyPeer()
    plain.greet()
    assert plain.take_output() == INIT
    assert plain.take_output() == b""


@pytest.mark.parametrize("vnet", [False, True])
@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_both_ends_understand_each_other_in_any_pieces(vnet: bool, piece: int) -> None:
    client, peer = connected(vnet=vnet), NotifyPeer(vnet=vnet)
    checkpoints = Checkpoints(client)
    peer.greet()
    carry(client, peer, piece)
    checkpoints.request("payload", 0)
    carry(client, peer, piece)
    assert (peer.greeted, peer.requests, peer.error) == (1, 1, False)
    assert checkpoints.advance(1) == []
    peer.checkpoint()
    carry(client, peer, piece)
    assert checkpoints.advance(2) == WHOLE
    assert checkpoints.by_reason == {"payload": 1}


# ------------------------------------------------------------------------------------------------ what is not in order


def test_a_checkpoint_that_nobody_asked_for_is_one() -> None:
    client = connected()
    checkpoints = Checkpoints(client)
    client.feed(CHECKPOINT)
    assert checkpoints.advance(0) == WHOLE
    assert client.counters["notify.unasked"] == 1
    assert client.counters["notify.checkpoint"] == 0


def test_many_checkpoints_between_two_polls_are_one() -> None:
    client = connected()
    client.feed(CHECKPOINT * 1000)
    assert client.poll(0) == WHOLE
    assert client.counters["notify.unasked"] == 1000


def test_a_checkpoint_before_the_wish_was_taken_fulfils_it() -> None:
    client = connected()
    client.begin("payload", 0)
    client.feed(CHECKPOINT)
    assert client.take_output() == b""
    assert client.poll(0) == WHOLE


def test_wishes_that_are_not_taken_do_not_pile_up() -> None:
    client = connected()
    for now in range(1000):
        client.begin("payload", now)
    assert client.take_output() == DO_CHECKPOINT


def test_a_retry_asks_again() -> None:
    client, peer = connected(), NotifyPeer()
    checkpoints = Checkpoints(client)
    checkpoints.request("payload", 0)
    carry(client, peer)
    assert checkpoints.advance(CONFIG.completion_timeout) == [Step.FAILED]
    checkpoints.advance(CONFIG.completion_timeout + CONFIG.retry_after)
    carry(client, peer)
    assert peer.requests == 2


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\0",
        b"DO_CHECKPOINT",
        b"COLO_CHECKPOINT\0",
        b"COLO_CHECKPOIN",
        b"colo_checkpoint",
        b"\xff" * MAX_FRAME_BYTES,
    ],
)
@pytest.mark.parametrize("vnet", [False, True])
def test_nonsense_is_counted_and_what_follows_is_understood(message: bytes, vnet: bool) -> None:
    client = connected(vnet=vnet)
    client.feed(encode(message, 0 if vnet else None) + (VNET_CHECKPOINT if vnet else CHECKPOINT))
    assert client.poll(0) == WHOLE
    assert not client.error
    assert client.counters.snapshot() == {"notify.connected": 1, "notify.unknown": 1, "notify.unasked": 1}


@pytest.mark.parametrize(
    ("vnet", "bytes_", "error"),
    [
        (False, (MAX_FRAME_BYTES + 1).to_bytes(4, "big"), "notify.too_long"),
        (True, b"\xff\xff\xff\xff\0\0\0\0", "notify.too_long"),
        (True, b"\0\0\0\x0f\0\0\0\x10COLO_CHECKPOINT", "notify.bad_vnet_hdr_len"),
        (True, INIT, "notify.bad_vnet_hdr_len"),
    ],
)
def test_a_stream_that_cannot_be_followed_fails_what_is_owed_until_another_peer_comes(
    vnet: bool, bytes_: bytes, error: str
) -> None:
    client = connected(vnet=vnet)
    checkpoints = Checkpoints(client)
    checkpoints.request("payload", 0)
    client.feed(bytes_)
    assert client.error == error
    assert client.counters[error] == 1
    assert checkpoints.advance(1) == [Step.FAILED]
    good = VNET_CHECKPOINT if vnet else CHECKPOINT
    client.feed(good)
    assert checkpoints.advance(2) == []
    checkpoints.advance(1 + CONFIG.retry_after)
    assert checkpoints.advance(1 + CONFIG.retry_after) == [Step.FAILED]
    assert client.counters["notify.no_peer"] == 1
    client.disconnect()
    client.connect()
    client.take_output()
    checkpoints.advance(1 + 3 * CONFIG.retry_after)
    assert checkpoints.state is State.REQUESTED
    assert client.take_output() == DO_CHECKPOINT
    client.feed(good)
    assert checkpoints.advance(2 + 3 * CONFIG.retry_after) == WHOLE


# --------------------------------------------------------------------------------------------------- peers come and go


def test_without_a_peer_checkpoints_fail_and_are_retried_until_one_comes() -> None:
    client, peer = NotifyClient(), NotifyPeer()
    checkpoints = Checkpoints(client)
    checkpoints.request("payload", 0)
    assert checkpoints.advance(0) == [Step.FAILED]
    client.connect()
    carry(client, peer)
    assert peer.requests == 0
    checkpoints.advance(CONFIG.retry_after)
    carry(client, peer)
    assert peer.requests == 1
    assert client.counters["notify.no_peer"] == 1


def test_a_peer_that_vanishes_fails_the_checkpoint_that_it_owes_and_only_that() -> None:
    client = connected()
    client.disconnect()
    assert client.poll(0) == []
    client.connect()
    client.begin("payload", 0)
    client.disconnect()
    client.disconnect()
    assert client.poll(0) == [Step.FAILED]
    assert client.counters["notify.disconnected"] == 2


def test_a_peer_that_vanishes_in_the_middle_of_a_message_does_not_spoil_the_next_ones() -> None:
    client = connected()
    client.feed(CHECKPOINT[:9])
    client.disconnect()
    client.connect()
    client.feed(CHECKPOINT)
    assert client.poll(0) == WHOLE
    assert client.counters["notify.cut"] == 1
    assert client.counters["notify.unknown"] == 0


def test_what_one_peer_was_to_be_told_is_not_told_to_the_next() -> None:
    client = connected()
    client.feed(INIT)
    client.begin("payload", 0)
    client.disconnect()
    client.connect()
    assert not client.greeted
    assert client.take_output() == b""


def test_bytes_are_the_sign_of_a_peer_where_the_driver_did_not_say_so() -> None:
    client = NotifyClient()
    client.feed(INIT)
    assert client.connected
    assert client.take_output() == XEN_INIT


def test_a_peer_that_greets_without_end_and_does_not_read_gets_bounded_answers() -> None:
    client = connected()
    for _ in range(100):
        client.feed(INIT * 100)
        assert len(client._replies) < MAX_OUTPUT_BYTES + len(XEN_INIT)
    client.begin("payload", 0)
    output = client.take_output()
    assert output.endswith(DO_CHECKPOINT)
    answered = output.count(XEN_INIT)
    assert client.counters["notify.greeted"] == answered
    assert client.counters["notify.not_answered"] == 10_000 - answered


def test_the_peer_counts_what_it_does_not_know_and_stops_at_a_bad_length() -> None:
    peer = NotifyPeer()
    peer.feed(encode(b"what?") + DO_CHECKPOINT + b"\xff\xff\xff\xff" + DO_CHECKPOINT)
    assert (peer.unknown, peer.requests, peer.error) == (1, 1, True)
