"""What an application may set, and what it is told: RFC 9293 section 3.9.1."""

from __future__ import annotations

import pytest

from pystack.errors import UsageError
from pystack.tcp import events
from pystack.tcp.congestion.newreno import NewReno
from pystack.tcp.events import TcpError
from pystack.wire.tcp import OPT_END
from tests.script.script import PEER, US, Script, config, ms, seconds


def test_r2_is_set_per_connection() -> None:
    # MUST-21.
    s = Script()
    c = s.connect(syn_timeout=seconds(5))
    s.expect("SYN seq=0")
    s.after(seconds(1), "SYN seq=0 ack=0")
    s.after(seconds(2), "SYN seq=0 ack=0")
    s.after(seconds(4), *["SYN seq=0 ack=0"] * (seconds(7) < seconds(5)))
    assert c.error is TcpError.TIMED_OUT


def test_application_hears_of_r1() -> None:
    # SHLD-9, SHLD-10: after three retransmissions, and the connection lives on.
    s = Script(listen=True)
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(b"x")
    s.expect("ACK seq=1 ack=1 len=1")
    s.after(ms(200), "ACK seq=1 ack=1 len=1")
    s.after(ms(400), "ACK seq=1 ack=1 len=1")
    assert s.events() == {}
    s.after(ms(800), "ACK seq=1 ack=1 len=1")
    assert s.events() == {c: events.SOFT_ERROR}
    assert "3 retransmissions" in c.soft_error
    s.peer("ACK seq=1 ack=2")
    assert s.state == "ESTABLISHED"


def test_listening_on_a_port_that_is_being_connected_from() -> None:
    # MUST-41, MUST-42.
    s = Script()
    s.connect()
    s.expect("SYN seq=0")
    listener = s.engine.listen(80)
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    s.expect("ACK seq=1 ack=1")
    assert s.state == "ESTABLISHED"
    assert listener.pending == 0


@pytest.mark.parametrize("passive", [False, True])
def test_one_local_address_from_the_first_segment_to_the_last(passive: bool) -> None:
    # MUST-45.
    s = Script(listen=passive)
    c = s.open_passively() if passive else s.open_actively()
    c.write(b"x")
    c.shutdown()
    packets = s.sent()
    s.peer("ACK seq=1 ack=3", "FIN-ACK seq=1 ack=3")
    packets += s.sent()
    assert {(p.src, p.dst) for p in packets} == {(US, PEER)}


def test_dscp_of_a_connection_and_its_change() -> None:
    # MUST-48, SHLD-21, SHLD-22.
    s = Script()
    c = s.connect(dscp=46)
    assert [p.tos for p in s.sent()] == [46 << 2]
    s.peer("SYN-ACK seq=0 ack=1 mss=1460")
    assert [p.tos for p in s.sent()] == [46 << 2]
    c.set_dscp(8)
    c.write(b"x")
    assert [p.tos for p in s.sent()] == [8 << 2]
    with pytest.raises(UsageError, match="64 is no DSCP"):
        c.set_dscp(64)


def test_another_congestion_control() -> None:
    # MAY-18.
    class Timid(NewReno):  # type: ignore[misc]
        """Never more than two segments."""

        def on_ack(self, acked: int, flight: int) -> None:
            """Stay."""

    s = Script(listen=True, congestion=lambda smss, _: Timid(smss, 2))
    c = s.open_passively("SYN seq=0 win=65535 mss=1000")
    c.write(bytes(10_000))
    assert len(s.sent()) == 2
    s.peer("ACK seq=1 ack=2001")
    assert len(s.sent()) == 2


def test_nothing_follows_the_end_of_our_options() -> None:
    # MUST-69 has the bytes behind an end-of-options be zero: there is none, the padding in front is made of NOPs.
    s = Script(listen=True, sack=True, timestamps=True, window_scale=True)
    s.peer("SYN seq=0 mss=1460 sackok ws=3 ts=1:0")
    packets = s.sent()
    s.peer("ACK seq=1 ack=1 ts=2:0", "ACK seq=101 ack=1 len=10 ts=2:0")
    packets += s.sent()
    assert len(packets) == 2
    for p in packets:
        at = p.l4 + 20
        while at < p.payload:
            assert p.frame[at] != OPT_END
            at += 1 if p.frame[at] == 1 else p.frame[at + 1]
        assert at == p.payload


def test_timer_stops_when_everything_is_acknowledged() -> None:
    # RFC 6298 rule 5.2.
    s = Script(listen=True)
    c = s.open_passively()
    c.write(b"x" * 3000)
    s.sent()
    s.peer("ACK seq=1 ack=2921")
    s.sent()
    s.peer("ACK seq=1 ack=3001")
    s.quiet(seconds(3600))
    s.counted()


def test_echo_of_a_segment_without_ack_is_ignored() -> None:
    # RFC 7323 section 3.2: TSecr counts only with the ACK bit.
    s = Script(listen=True, timestamps=True)
    s.peer(f"SYN seq=0 mss=1460 ts=1:{s.now // 1000 - 5}")
    s.expect(f"SYN-ACK seq=0 ack=1 ts={s.now // 1000}:1")
    assert s.c.rtt == (0, 0)


def test_settings_are_one_immutable_value() -> None:
    settings = config()
    with pytest.raises(AttributeError):
        settings.nagle = False  # type: ignore[misc]


def test_an_idle_connection_wakes_nobody() -> None:
    # A timer that is left armed spins the driver's loop.
    s = Script(listen=True, nagle=False)
    c = s.open_passively()
    s.peer("ACK seq=1 ack=1 len=3000")
    c.write(b"x" * 3000)
    s.sent()
    s.peer("ACK seq=3001 ack=3001")
    c.read(3000)
    s.sent()
    s.quiet(seconds(2))
    assert s.timers.next_timeout() is None
    assert not s.engine.pending
    c.close()
    s.expect("FIN-ACK seq=3001 ack=3001")
    s.peer("FIN-ACK seq=3001 ack=3002")
    s.expect("ACK seq=3002 ack=3002")
    s.quiet(seconds(61))
    assert s.timers.next_timeout() is None
    assert len(s.timers) == 0
