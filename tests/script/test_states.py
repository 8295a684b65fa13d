"""The state machine as a whole: RFC 9293 section 3.3.2, and the ways that a turn to send is shared."""

from __future__ import annotations

from pystack.frame import TxFrame
from pystack.tcp.state import CLOSED, NAMES, SYN_SENT, TIME_WAIT, TRANSITIONS
from tests.script.script import Script, seconds
from tests.tcp_rules import every_transition_is_allowed


def _reach(state: str) -> Script:
    """A script whose connection has come to ``state`` in the ordinary way."""
    if state == "SYN-SENT":
        s = Script()
        s.connect()
        s.sent()
        return s
    s = Script(listen=True)
    if state == "SYN-RECEIVED":
        s.peer("SYN seq=0 mss=1460")
        s.sent()
        return s
    c = s.open_passively()
    if state in ("CLOSE-WAIT", "LAST-ACK"):
        s.peer("FIN-ACK seq=1 ack=1")
    if state in ("FIN-WAIT-1", "FIN-WAIT-2", "CLOSING", "LAST-ACK", "TIME-WAIT"):
        c.shutdown()
    s.sent()
    if state in ("FIN-WAIT-2", "TIME-WAIT"):
        s.peer("ACK seq=1 ack=2")
    if state == "CLOSING":
        s.peer("FIN-ACK seq=1 ack=1")
    if state == "TIME-WAIT":
        s.peer("FIN-ACK seq=1 ack=2")
    s.sent()
    return s


def test_every_transition_of_the_table_happens_and_no_other() -> None:
    with every_transition_is_allowed() as seen:
        for number in range(SYN_SENT, TIME_WAIT + 1):
            s = _reach(NAMES[number])
            assert s.state == NAMES[number]
            s.c.abort()
            assert s.state == NAMES[CLOSED]
        s = _reach("SYN-SENT")
        s.peer("SYN-ACK seq=0 ack=1")
        s = _reach("SYN-SENT")
        s.peer("SYN seq=0")
        s = _reach("CLOSING")
        s.peer("ACK seq=2 ack=2")
        s = _reach("LAST-ACK")
        s.peer("ACK seq=2 ack=2")
        s = _reach("TIME-WAIT")
        s.quiet(seconds(60))
    assert seen == TRANSITIONS


def test_abort_sends_a_reset_where_the_state_calls_for_one() -> None:
    # RFC 9293 section 3.10.5.
    for number in range(SYN_SENT, TIME_WAIT + 1):
        s = _reach(NAMES[number])
        s.c.abort()
        assert len(s.sent()) == (NAMES[number] not in ("SYN-SENT", "TIME-WAIT")), NAMES[number]
        assert len(s.engine) == 0


def test_busy_connections_take_turns() -> None:
    s = Script(listen=True)
    first = s.open_passively("SYN seq=0 win=65535 mss=1000")
    s.peer_port += 1
    s.peer_next = s.us_next = 0
    s.connection = None
    second = s.open_passively("SYN seq=0 win=65535 mss=1000")
    first.write(bytes(9000))
    second.write(bytes(9000))
    ports = []
    for _ in range(6):
        assert s.engine.pending
        out: list[TxFrame] = []
        s.engine.output(s.now, out, 3)
        assert len(out) == 3
        ports += [int.from_bytes(frame[0][36:38], "big") for frame in out]
    assert ports == ([first.remote_port] * 3 + [second.remote_port] * 3) * 3
    s.expect()
    assert not s.engine.pending


def test_replies_that_the_link_does_not_take_are_bounded() -> None:
    s = Script()
    for _ in range(1100):
        s.peer("SYN seq=0 mss=1460")
    s.counted(no_connection=1100, rst_sent=1024, rst_suppressed=76)
    assert len(s.sent()) == 1024


def test_no_reset_goes_to_a_neighbour_that_is_not_known() -> None:
    s = Script(resolved=False)
    s.peer("SYN seq=0 mss=1460")
    s.expect()
    s.counted(no_connection=1, rst_suppressed=1)
