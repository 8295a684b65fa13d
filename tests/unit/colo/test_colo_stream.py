"""QEMU's COLO messages in a migration stream, however it is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from colo.qemu.colo_stream import ColoStream, Event, Message
from pystack.counters import Counters

ONE_CHECKPOINT: list[tuple[str, Message | bytes]] = [
    ("primary", Message.CHECKPOINT_REQUEST),
    ("secondary", Message.CHECKPOINT_REPLY),
    ("primary", Message.VMSTATE_SEND),
    ("primary", b"\0\0\0\1" * 700),  # memory, which looks like messages
    ("secondary", Message.VMSTATE_RECEIVED),
    ("secondary", Message.VMSTATE_LOADED),
]
SAID: list[tuple[str, Message | bytes]] = [
    ("primary", b"QEVM and memory"),
    ("secondary", Message.CHECKPOINT_READY),
    *ONE_CHECKPOINT,
    *ONE_CHECKPOINT,
]
HAPPENED = [Event.ENTERED] + [Event.REQUESTED, Event.BOTH_STOPPED, Event.LOADED] * 2


def words(said: Message | bytes) -> bytes:
    return said.to_bytes(4, "big") if isinstance(said, Message) else said


def feed(stream: ColoStream, who: str, data: bytes) -> list[bytes | Event]:
    return stream.from_primary(data) if who == "primary" else stream.from_secondary(data)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9))
def test_however_it_is_cut_the_events_come_in_order_and_every_byte_goes_on(sizes: list[int]) -> None:
    stream = ColoStream(Counters())
    events: list[Event] = []
    passed = {"primary": b"", "secondary": b""}
    turn = 0
    for who, said in SAID:
        data = words(said)
        while data:
            size = sizes[turn % len(sizes)] * (100 if len(data) > 100 else 1)
            turn += 1
            for piece in feed(stream, who, data[:size]):
                if isinstance(piece, Event):
                    events.append(piece)
                else:
                    passed[who] += piece
            data = data[size:]
    assert events == HAPPENED
    for who, through in passed.items():
        assert through == b"".join(words(said) for speaker, said in SAID if speaker == who)


def test_an_event_comes_before_the_bytes_that_let_a_machine_go_on() -> None:
    stream = ColoStream(Counters())
    ready = words(Message.CHECKPOINT_READY)
    assert stream.from_secondary(ready) == [Event.ENTERED, ready]
    request, send = words(Message.CHECKPOINT_REQUEST), words(Message.VMSTATE_SEND)
    assert stream.from_primary(request + send + b"memory") == [
        Event.REQUESTED, request, Event.BOTH_STOPPED, send, b"memory",
    ]  # fmt: skip
    assert stream.undecided
    stream.from_secondary(words(Message.CHECKPOINT_REPLY) + words(Message.VMSTATE_RECEIVED))
    loaded = words(Message.VMSTATE_LOADED)
    assert stream.from_secondary(loaded) == [Event.LOADED, loaded]
    assert not stream.undecided


PONG = bytes.fromhex("0002 0004 0000 0001")
SHUT = bytes.fromhex("0001 0004 0000 0000")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.booleans())
def test_what_the_return_path_says_first_is_no_message(sizes: list[int], prompt: bool) -> None:
    """As QEMU 11.1.3 was seen to: an answer to a ping, the end of that way, and then COLO's first word, all zeroes."""
    stream = ColoStream(Counters(), prompt=prompt)
    said = PONG + SHUT + words(Message.CHECKPOINT_READY) + words(Message.CHECKPOINT_REPLY)
    left, passed, events = said, b"", []
    while left:
        size = sizes[len(passed) % len(sizes)]
        for piece in stream.from_secondary(left[:size]):
            if isinstance(piece, Event):
                events.append(piece)
                assert passed == PONG + SHUT
            else:
                passed += piece
        left = left[size:]
    assert (passed, events) == (said, [Event.ENTERED])


def test_the_return_path_is_silent_once_colo_speaks() -> None:
    counters = Counters()
    stream = ColoStream(counters)
    ready = words(Message.CHECKPOINT_READY)
    assert stream.from_secondary(ready + PONG) == [Event.ENTERED, ready, Event.BROKEN, PONG[:4], PONG[4:]]
    assert counters["engine.bad_message"] == 1


def test_a_length_that_no_message_has_is_not_waited_for() -> None:
    stream = ColoStream(Counters())
    assert Event.BROKEN in stream.from_secondary(bytes.fromhex("0002 ffff"))


def test_a_prompt_one_lets_the_primary_run_first() -> None:
    stream = ColoStream(Counters(), prompt=True)
    ready, request, send, loaded = (
        words(said)
        for said in (
            Message.CHECKPOINT_READY, Message.CHECKPOINT_REQUEST, Message.VMSTATE_SEND, Message.VMSTATE_LOADED,
        )
    )  # fmt: skip
    assert stream.from_secondary(ready) == [Event.ENTERED, ready]
    assert stream.from_primary(request + send) == [Event.REQUESTED, request, Event.BOTH_STOPPED, send]
    stream.from_secondary(words(Message.CHECKPOINT_REPLY) + words(Message.VMSTATE_RECEIVED))
    assert stream.from_secondary(loaded) == [loaded, Event.LOADED]
    assert not stream.undecided


def test_what_is_no_message_is_handed_on_and_told_of_once() -> None:
    counters = Counters()
    stream = ColoStream(counters)
    stream.from_secondary(words(Message.CHECKPOINT_READY))
    assert stream.from_primary(b"\0\0") == []
    assert stream.from_secondary(b"nonsense") == [Event.BROKEN, b"nons", b"ense"]
    assert stream.from_primary(b"more") == [b"\0\0more"]
    assert stream.broken
    assert counters["engine.bad_message"] == 1


@given(st.lists(st.tuples(st.sampled_from(["primary", "secondary"]), st.binary(max_size=40)), max_size=20))
def test_no_input_breaks_it_and_nothing_is_kept_but_a_part_of_a_word(inputs: list[tuple[str, bytes]]) -> None:
    stream = ColoStream(Counters())
    given_bytes = dict.fromkeys(("primary", "secondary"), 0)
    for who, data in inputs:
        pieces = feed(stream, who, data)
        given_bytes[who] += len(data) - sum(len(piece) for piece in pieces if isinstance(piece, bytes))
        assert 0 <= given_bytes[who] < 4
