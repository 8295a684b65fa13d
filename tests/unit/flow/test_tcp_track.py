"""What an observer makes of a TCP connection's segments, ordinary and odd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pystack.flow.tcp_state import UNSET, EndState
from pystack.flow.tracker import State
from pystack.wire import tcp
from pystack.wire.packet import ACK, CWR, ECE, FIN, PSH, RST, SYN
from tests.unit.flow.rewriting import Lane
from tests.unit.flow.tracking import Watch, opened, parse

E = EndState
LANES = {
    "IPv4": Lane(),
    "IPv6": Lane(v6=True),
    "VLAN": Lane(tags=bytes.fromhex("81000007")),
    "two VLANs, IPv6": Lane(v6=True, tags=bytes.fromhex("88a8000581000007")),
    "equal ports": Lane(sport=80, dport=80),
}


def scaled(shift: int | None) -> dict[str, Any]:
    return {"options": tcp.build_options(mss=1460, window_scale=shift)}


@pytest.fixture
def watch() -> Watch:
    return Watch()


# ----------------------------------------------------------------------------------------------------- states, in order


@pytest.mark.parametrize("lane", LANES.values(), ids=LANES.keys())
@pytest.mark.parametrize("iss", [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFF])
def test_both_ends_pass_through_the_states_of_figure_5(lane: Lane, iss: int) -> None:
    """The client closes first; the server goes on sending for a while."""
    watch = Watch(lane=lane, client_iss=iss, server_iss=iss ^ 0x8000_0000)
    script: list[tuple[Callable[..., State], tuple[Any, ...], State, tuple[E, E]]] = [
        (watch.client, (0, SYN), State.SYN_SENT, (E.SYN_SENT, E.UNHEARD)),
        (watch.server, (0, SYN | ACK, 1), State.SYN_RECEIVED, (E.SYN_SENT, E.SYN_RECEIVED)),
        (watch.client, (1, ACK, 1), State.ESTABLISHED, (E.ESTABLISHED, E.ESTABLISHED)),
        (watch.client, (1, PSH | ACK, 1, b"GET"), State.ESTABLISHED, (E.ESTABLISHED, E.ESTABLISHED)),
        (watch.client, (4, FIN | ACK, 1), State.HALF_CLOSED, (E.FIN_WAIT_1, E.ESTABLISHED)),
        (watch.server, (1, ACK, 4), State.HALF_CLOSED, (E.FIN_WAIT_1, E.ESTABLISHED)),
        (watch.server, (1, ACK, 5, b"body"), State.HALF_CLOSED, (E.FIN_WAIT_2, E.CLOSE_WAIT)),
        (watch.client, (5, ACK, 5), State.HALF_CLOSED, (E.FIN_WAIT_2, E.CLOSE_WAIT)),
        (watch.server, (5, FIN | ACK, 5), State.CLOSING, (E.FIN_WAIT_2, E.LAST_ACK)),
        (watch.client, (5, ACK, 6), State.TIME_WAIT, (E.TIME_WAIT, E.CLOSED)),
    ]
    for call, arguments, state, ends in script:
        assert call(*arguments) is state
        assert watch.ends == ends
    assert watch.counted() == {}
    clients, servers = watch.clients, watch.servers
    assert (clients.nxt - clients.iss, clients.fin - clients.iss) == (5, 4)
    assert (servers.nxt - servers.iss, servers.fin - servers.iss) == (6, 5)
    assert (servers.ack, clients.ack) == (clients.nxt, servers.nxt)


def test_the_server_opens(watch: Watch) -> None:
    assert watch.server(0, SYN) is State.SYN_SENT
    assert watch.client(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.ends == (E.SYN_RECEIVED, E.SYN_SENT)
    assert watch.server(1, ACK, 1) is State.ESTABLISHED
    assert watch.track.ends[watch.track.opener] is watch.servers


def test_both_ends_open_at_once(watch: Watch) -> None:
    """RFC 9293 section 3.5, figure 8: each is established by the other's SYN-ACK."""
    assert watch.client(0, SYN, **scaled(3)) is State.SYN_SENT
    assert watch.server(0, SYN, **scaled(4)) is State.SYN_RECEIVED
    assert watch.ends == (E.SYN_SENT, E.SYN_SENT)
    assert watch.client(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.ends == (E.SYN_RECEIVED, E.SYN_SENT)
    assert watch.server(0, SYN | ACK, 1) is State.ESTABLISHED
    assert watch.ends == (E.ESTABLISHED, E.ESTABLISHED)
    assert (watch.clients.scale, watch.servers.scale) == (3, 4)
    assert watch.counted() == {"flow.tcp_syn_again": 2}


def test_both_ends_close_at_once(watch: Watch) -> None:
    watch.open()
    assert watch.client(1, FIN | ACK, 1) is State.HALF_CLOSED
    assert watch.server(1, FIN | ACK, 1) is State.CLOSING
    assert watch.ends == (E.FIN_WAIT_1, E.FIN_WAIT_1)
    assert watch.client(2, ACK, 2) is State.CLOSING
    assert watch.ends == (E.CLOSING, E.FIN_WAIT_2)
    assert watch.server(2, ACK, 2) is State.TIME_WAIT
    assert watch.ends == (E.TIME_WAIT, E.TIME_WAIT)


def test_an_answer_with_a_fin_of_its_own_makes_it_three_segments(watch: Watch) -> None:
    watch.open()
    watch.client(1, FIN | ACK, 1)
    assert watch.server(1, FIN | ACK, 2) is State.CLOSING
    assert watch.ends == (E.FIN_WAIT_2, E.LAST_ACK)
    assert watch.client(2, ACK, 2) is State.TIME_WAIT


def test_data_on_a_syn_counts(watch: Watch) -> None:
    """RFC 7413: it may be acknowledged, or not."""
    watch.client(0, SYN, 0, b"early")
    assert watch.clients.nxt - watch.clients.iss == 6
    assert watch.server(0, SYN | ACK, 6) is State.SYN_RECEIVED
    assert watch.client(6, ACK, 1) is State.ESTABLISHED


def test_a_syn_with_ecn_is_a_syn(watch: Watch) -> None:
    assert watch.client(0, SYN | ECE | CWR) is State.SYN_SENT


# ------------------------------------------------------------------------------------------------ numbers and windows


@pytest.mark.parametrize(("mine", "its", "shift"), [(7, 2, 2), (7, None, 0), (None, 2, 0), (0, 14, 14), (7, 15, 14)])
def test_windows_are_scaled_if_both_syns_say_so(watch: Watch, mine: int | None, its: int | None, shift: int) -> None:
    """RFC 7323 section 2: the window of a SYN itself never is, and 14 is the most."""
    watch.client(0, SYN, window=1000, **scaled(mine))
    watch.server(0, SYN | ACK, 1, window=1000, **scaled(its))
    assert (watch.servers.window, watch.servers.right) == (1000, watch.clients.iss + 1001)
    watch.client(1, ACK, 1)
    watch.server(1, ACK, 1, window=1000)
    assert watch.servers.window == 1000 << shift
    assert watch.servers.right == watch.servers.ack + (1000 << shift)


def test_a_window_that_shrinks_leaves_its_right_edge(watch: Watch) -> None:
    watch.open()
    watch.server(1, ACK, 1, window=5000)
    edge = watch.servers.right
    watch.server(1, ACK, 1, window=0)
    assert (watch.servers.window, watch.servers.right) == (0, edge)


def test_negotiated_options_are_kept(watch: Watch) -> None:
    watch.client(0, SYN, options=tcp.build_options(mss=1460, sack_permitted=True, timestamps=(5, 0), window_scale=7))
    options = watch.clients.options
    assert options is not None
    assert (options.mss, options.sack_permitted, options.timestamps, options.window_scale) == (1460, True, (5, 0), 7)
    assert watch.servers.options is None


def test_retransmissions_and_disorder_move_nothing_back(watch: Watch) -> None:
    watch.open()
    watch.server(101, ACK, 1, b"y" * 100)
    watch.client(1, ACK, 1)  # a duplicate acknowledgement
    watch.server(1, ACK, 1, b"x" * 100)
    watch.client(1, ACK, 201)
    watch.server(51, ACK, 1, b"z" * 100)  # repacketised, and late
    watch.client(1, ACK, 101)  # reordered
    watch.server(0, SYN | ACK, 1)
    assert watch.client(0, SYN) is State.ESTABLISHED
    assert (watch.servers.nxt - watch.servers.iss, watch.clients.ack - watch.servers.iss) == (201, 201)
    assert watch.counted() == {"flow.tcp_syn_again": 2}


def test_a_stream_longer_than_the_number_space_is_counted_on(watch: Watch) -> None:
    """Four times round, in steps of 1 GiB: absolute numbers do not wrap."""
    watch.client(0, SYN, **scaled(14))
    watch.server(0, SYN | ACK, 1, **scaled(14))
    watch.client(1, ACK, 1, window=65_535)
    sent = 1
    for _ in range(17):
        sent += (1 << 30) - (1 << 20)
        assert watch.server(sent - 4, ACK, 1, b"tail") is State.ESTABLISHED
        watch.client(1, ACK, sent, window=65_535)
    assert watch.servers.nxt - watch.servers.iss == sent
    assert watch.clients.ack == watch.servers.nxt
    assert watch.counted() == {}


def test_segments_outside_the_window_move_nothing(watch: Watch) -> None:
    """RFC 9293 section 3.4: a byte to probe a window and a FIN may pass it, and nothing else."""
    watch.open()
    watch.client(1, ACK, 1, window=10)  # 10 << 7
    edge = 1 + 65_535 * 128  # what it had offered before stands
    before = [(end.nxt, end.ack, end.right, end.fin) for end in watch.track.ends]
    for offset in (edge + 3, 0x3000_0000, -0x3000_0000, -200_000_000):
        assert watch.server(offset, FIN | ACK, 1, b"far") is State.ESTABLISHED
    assert [(end.nxt, end.ack, end.right, end.fin) for end in watch.track.ends] == before
    assert watch.counted() == {"flow.tcp_out_of_window": 4}
    watch.server(edge - 1, ACK, 1, b"p")
    assert watch.servers.nxt - watch.servers.iss == edge


def test_what_was_never_sent_cannot_be_acknowledged(watch: Watch) -> None:
    watch.open()
    watch.server(1, ACK, 1, b"data")
    assert watch.client(1, FIN | ACK, 6, b"and what comes with it") is State.ESTABLISHED
    assert watch.clients.nxt - watch.clients.iss == 1
    assert watch.clients.ack - watch.servers.iss == 1
    assert watch.counted() == {"flow.tcp_bad_ack": 1}
    watch.client(1, ACK, 5)
    assert watch.clients.ack == watch.servers.nxt


# ------------------------------------------------------------------------------------------------------------- midway


def test_a_connection_is_picked_up_midway(watch: Watch) -> None:
    assert watch.server(5000, ACK, 700, b"data") is State.NEW
    assert watch.ends == (E.UNHEARD, E.ESTABLISHED)
    assert watch.client(700, ACK, 5004) is State.ESTABLISHED
    assert (watch.clients.iss, watch.servers.iss) == (UNSET, UNSET)
    assert watch.client(700, FIN | ACK, 5004) is State.HALF_CLOSED
    assert watch.server(5004, FIN | ACK, 701) is State.CLOSING
    assert watch.client(701, ACK, 5005) is State.TIME_WAIT
    assert watch.counted() == {}


def test_midway_what_passed_before_may_be_acknowledged(watch: Watch) -> None:
    """Within the window that was offered, whose scale nobody knows."""
    watch.client(700, ACK, 5000)
    watch.server(5000, ACK, 700, b"data")
    watch.client(700, ACK, 9000)
    assert watch.servers.nxt - watch.clients.ack == 0
    watch.client(700, ACK, 0x6000_0000)
    assert watch.counted() == {"flow.tcp_bad_ack": 1}


def test_a_syn_of_an_end_whose_stream_was_acknowledged_is_a_claim(watch: Watch) -> None:
    """Only one end was heard so far, but the other one has been there."""
    watch.server(5000, ACK, 700, b"data")
    assert watch.client(0, SYN) is State.NEW
    assert watch.counted() == {"flow.tcp_syn_in_connection": 1}
    assert watch.client(700, ACK, 5004) is State.ESTABLISHED


def test_the_syn_alone_was_missed(watch: Watch) -> None:
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.client(1, ACK, 1) is State.ESTABLISHED
    assert watch.track.ends[watch.track.opener] is watch.clients


def test_the_syn_ack_alone_was_missed(watch: Watch) -> None:
    watch.client(0, SYN)
    assert watch.client(1, ACK, 1) is State.SYN_RECEIVED
    assert watch.server(1, ACK, 1, b"hello") is State.ESTABLISHED
    assert watch.ends == (E.ESTABLISHED, E.ESTABLISHED)


# ------------------------------------------------------------------------------------------------- ports used again


@pytest.mark.parametrize("iss", [7, 5000, 0x8000_0000])
def test_ports_are_used_again_after_the_end(watch: Watch, iss: int) -> None:
    watch.open()
    watch.close()
    first = watch.tracked
    watch.client_iss, watch.server_iss = iss, iss + 1
    watch.open()
    assert watch.tracked is first
    assert watch.track.incarnation == 1
    assert watch.tracker.live == 1
    assert watch.counters["flow.reused"] == 1
    assert watch.clients.iss & 0xFFFF_FFFF == iss
    assert watch.client(1, ACK, 1, b"new") is State.ESTABLISHED
    assert watch.clients.nxt - watch.clients.iss == 4


def test_by_the_other_end_too(watch: Watch) -> None:
    watch.open()
    watch.close()
    watch.client_iss, watch.server_iss = 70_000, 80_000
    assert watch.server(0, SYN) is State.SYN_SENT
    assert watch.client(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.server(1, ACK, 1) is State.ESTABLISHED


@pytest.mark.parametrize("distance", [1, 900_000, -900_000, 0x7000_0000])
def test_a_syn_does_not_reset_a_connection_that_lives(watch: Watch, distance: int) -> None:
    """RFC 5961 section 4: it will be challenged, whatever its number."""
    watch.open()
    watch.client(1, ACK, 1, b"x" * 10)
    iss, watch.client_iss = watch.client_iss, watch.client_iss + distance
    assert watch.client(0, SYN) is State.ESTABLISHED
    assert watch.counted() == {"flow.tcp_syn_in_connection": 1}
    watch.client_iss = iss
    assert watch.server(1, ACK, 11, b"still here") is State.ESTABLISHED
    assert watch.client(11, ACK, 11) is State.ESTABLISHED
    assert watch.track.incarnation == 0
    assert watch.servers.nxt - watch.servers.iss == 11


def test_unless_the_other_end_answers_it(watch: Watch) -> None:
    """It had forgotten the connection, and nothing of that had been seen."""
    watch.open()
    watch.client_iss, watch.server_iss = 70_000, 80_000
    watch.client(0, SYN, **scaled(5))
    assert watch.server(0, SYN | ACK, 1, **scaled(6)) is State.SYN_RECEIVED
    assert watch.client(1, ACK, 1) is State.ESTABLISHED
    assert (watch.clients.scale, watch.servers.scale) == (5, 6)
    assert watch.track.incarnation == 1
    assert watch.tracker.live == 1


def test_a_syn_ack_that_answers_nothing_changes_nothing(watch: Watch) -> None:
    watch.open()
    watch.server_iss += 5000
    assert watch.server(0, SYN | ACK, 500) is State.ESTABLISHED
    assert watch.servers.iss & 0xFFFF_FFFF == 0xFFFF_FFF0
    assert watch.counted() == {"flow.tcp_stray_syn_ack": 1}


def test_a_late_syn_does_not_wake_what_is_over(watch: Watch) -> None:
    """RFC 9293 section 3.6.1: its number lies within the old stream; it counts once it is answered."""
    watch.open()
    watch.client(1, ACK, 1, b"x" * 1000)
    watch.server(1, FIN | ACK, 1001)
    watch.client(1001, FIN | ACK, 2)
    assert watch.server(2, ACK, 1002) is State.TIME_WAIT
    assert watch.client(0, SYN) is State.TIME_WAIT
    watch.client_iss += 500
    assert watch.client(0, SYN) is State.TIME_WAIT
    assert watch.tracker.live == 0
    watch.server_iss = 9
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.tracker.live == 1


def test_recovery_from_an_old_duplicate_syn(watch: Watch) -> None:
    """RFC 9293 section 3.5, figure 9."""
    fresh, watch.client_iss = watch.client_iss, 90
    assert watch.client(0, SYN) is State.SYN_SENT  # the old one comes first
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED
    watch.client_iss = fresh
    assert watch.client(0, SYN) is State.SYN_RECEIVED
    watch.client_iss = 90
    assert watch.client(1, RST) is State.CLOSED
    watch.client_iss, watch.server_iss = fresh, 400
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.client(1, ACK, 1) is State.ESTABLISHED


def test_a_server_that_answers_with_another_number(watch: Watch) -> None:
    """It had forgotten its first answer: the last one counts as long as none is acknowledged."""
    watch.client(0, SYN)
    watch.server(0, SYN | ACK, 1)
    watch.server_iss = 12_345
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED
    assert watch.client(1, ACK, 1) is State.ESTABLISHED
    assert watch.servers.iss & 0xFFFF_FFFF == 12_345


@pytest.mark.parametrize("ack", [0, 2, -5, 0x4000_0000])
def test_a_syn_ack_must_acknowledge_the_syn(watch: Watch, ack: int) -> None:
    watch.client(0, SYN)
    assert watch.server(0, SYN | ACK, ack) is State.SYN_SENT
    assert watch.counted() == {"flow.tcp_stray_syn_ack": 1}
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED


def test_a_peer_that_was_restarted_and_opens_by_the_same_ports(watch: Watch) -> None:
    """RFC 9293 section 3.5.1: challenged, it resets the old connection and tries again."""
    watch.open()
    watch.client(1, ACK, 1, b"abc")
    watch.server(1, ACK, 4)
    old, watch.client_iss = watch.client_iss, 5_000_000
    assert watch.client(0, SYN) is State.ESTABLISHED
    watch.client_iss = old
    watch.server(1, ACK, 4)  # the challenge
    assert watch.client(4, RST) is State.CLOSED
    watch.client_iss = 5_000_000
    assert watch.client(0, SYN) is State.SYN_SENT
    watch.server_iss = 77
    assert watch.server(0, SYN | ACK, 1) is State.SYN_RECEIVED


@pytest.mark.parametrize("flags", [0, FIN, PSH])
def test_what_acknowledges_nothing_says_nothing(watch: Watch, flags: int) -> None:
    watch.server(5, flags)
    assert watch.client(0, SYN) is State.SYN_SENT
    assert watch.server(0, flags) is State.SYN_SENT
    assert watch.counted() == {"flow.tcp_bad_flags": 2}


def test_a_syn_with_a_fin_is_nothing(watch: Watch) -> None:
    watch.client(0, SYN)
    assert watch.client(5, SYN | FIN) is State.SYN_SENT
    assert watch.counted() == {"flow.tcp_bad_flags": 1}


# ------------------------------------------------------------------------------------------------------------- resets


def test_a_syn_is_refused(watch: Watch) -> None:
    watch.client(0, SYN)
    watch.server_iss = 0
    for ack in (0, 2, 50_000):
        assert watch.server(0, RST | ACK, ack) is State.SYN_SENT
    assert watch.server(0, RST) is State.SYN_SENT
    assert watch.counted() == {"flow.tcp_bad_rst": 4}
    assert watch.server(0, RST | ACK, 1) is State.CLOSED
    assert watch.ends == (E.CLOSED, E.CLOSED)
    assert watch.client(0, SYN) is State.SYN_SENT  # tried again: the refusal was lost


def test_a_client_gives_up(watch: Watch) -> None:
    watch.client(0, SYN)
    assert watch.client(700, RST) is State.SYN_SENT
    assert watch.client(1, RST) is State.CLOSED


@pytest.mark.parametrize("flags", [RST, RST | ACK, RST | SYN])
def test_a_reset_must_be_within_the_window(watch: Watch, flags: int) -> None:
    """RFC 5961 section 3: else anybody could end it."""
    watch.open()
    watch.server(1, ACK, 1, b"x" * 100)
    watch.client(1, ACK, 101, window=10)  # and 65,535 from offset 1 before that
    for offset in (50, 100, 1 + (65_535 << 7) + 1, -1, 0x5000_0000):
        assert watch.server(offset, flags, 1) is State.ESTABLISHED
    assert watch.counted() == {"flow.tcp_bad_rst": 5}
    assert watch.server(101, flags, 1) is State.CLOSED
    assert watch.tracker.live == 0
    assert watch.client(1, ACK, 101) is State.CLOSED
    assert watch.server(101, ACK, 1) is State.CLOSED  # was under way
    assert watch.server(101, RST, 1) is State.CLOSED


def test_a_reset_at_the_very_end_of_a_full_window_is_in_place(watch: Watch) -> None:
    """What fills the window may have arrived, and its acknowledgement not yet passed."""
    watch.client(0, SYN, window=100)
    watch.server(0, SYN | ACK, 1)
    watch.client(1, ACK, 1, window=100)
    watch.server(1, ACK, 1, bytes(100))
    assert watch.server(102, RST) is State.ESTABLISHED
    assert watch.server(101, RST) is State.CLOSED


def test_an_end_that_sends_on_has_not_reset_it(watch: Watch) -> None:
    """A forged RST within the window is challenged by its receiver (RFC 5961 section 3.2), and the stream goes on."""
    watch.open()
    watch.server(1, ACK, 1, b"x" * 100)
    assert watch.server(5000, RST) is State.CLOSED
    assert watch.server(51, ACK, 1, b"x" * 50) is State.CLOSED  # that was under way
    assert watch.client(1, ACK, 101, b"from the other end") is State.CLOSED
    assert watch.server(101, ACK, 1, b"y" * 6000) is State.ESTABLISHED
    assert watch.tracker.live == 1
    assert watch.counted() == {"flow.tcp_revived": 1}
    assert watch.track.incarnation == 0


def test_a_reset_without_a_flow_makes_none(watch: Watch) -> None:
    frame = watch.lane.segment(outward=True, seq=5, flags=RST)
    assert watch.tracker.observe(parse(frame), 0) is None
    assert (len(watch.tracker), watch.tracker.counters.snapshot()) == (0, {"flow.tcp_stray_rst": 1})


def test_a_reset_of_what_was_met_midway(watch: Watch) -> None:
    """RFC 9293 section 3.5.2: an end that knows nothing answers by the number that was acknowledged."""
    watch.client(700, ACK, 5000, b"are you there?")
    assert watch.server(4000, RST) is State.NEW
    assert watch.server(5000, RST) is State.CLOSED


# --------------------------------------------------------------------------------------------------------------- FINs


def test_a_fin_comes_before_what_precedes_it(watch: Watch) -> None:
    watch.open()
    assert watch.server(101, FIN | ACK, 1, b"y" * 100) is State.HALF_CLOSED
    watch.client(1, ACK, 1)
    assert watch.ends == (E.ESTABLISHED, E.FIN_WAIT_1)
    watch.server(1, ACK, 1, b"x" * 100)
    watch.server(101, FIN | ACK, 1, b"y" * 100)
    watch.client(1, ACK, 202)
    assert watch.ends == (E.CLOSE_WAIT, E.FIN_WAIT_2)
    assert watch.servers.fin - watch.servers.iss == 201


def test_nothing_comes_after_a_fin_that_was_acknowledged(watch: Watch) -> None:
    watch.open()
    watch.server(1, FIN | ACK, 1)
    watch.client(1, ACK, 2)
    assert watch.server(2, ACK, 1, b"more") is State.HALF_CLOSED
    assert watch.servers.nxt == watch.servers.fin + 1
    assert watch.counted() == {"flow.tcp_after_fin": 1}


def test_a_stream_that_goes_on_past_a_fin_has_not_ended(watch: Watch) -> None:
    """A machine that had closed it has died, and the one that carries it on has more to say."""
    watch.open()
    assert watch.server(1, FIN | ACK, 1, b"short") is State.HALF_CLOSED
    assert watch.client(1, ACK, 6) is State.HALF_CLOSED  # the data, but not the FIN
    assert watch.server(1, ACK, 1, b"longer than that") is State.ESTABLISHED
    assert watch.counted() == {"flow.tcp_fin_moved": 1}
    assert watch.server(17, FIN | ACK, 1) is State.HALF_CLOSED
    assert watch.servers.fin - watch.servers.iss == 17


def test_a_stream_may_end_before_what_was_sent_of_it(watch: Watch) -> None:
    """The machine that had sent more has died; but not before what its peer has acknowledged."""
    watch.open()
    watch.server(1, ACK, 1, b"x" * 100)
    watch.client(1, ACK, 51)
    assert watch.server(31, FIN | ACK, 1) is State.ESTABLISHED
    assert watch.server(61, FIN | ACK, 1) is State.HALF_CLOSED
    assert watch.servers.nxt - watch.servers.iss == 62
    assert watch.counted() == {"flow.tcp_bad_fin": 1, "flow.tcp_shortened": 1}


def test_what_is_repeated_in_time_wait_changes_nothing() -> None:
    watch = opened()
    watch.close()
    numbers = [(end.nxt, end.ack, end.fin) for end in watch.track.ends]
    assert watch.server(1, FIN | ACK, 2) is State.TIME_WAIT
    assert watch.client(2, ACK, 2) is State.TIME_WAIT
    assert watch.client(2, RST) is State.TIME_WAIT  # RFC 1337
    assert [(end.nxt, end.ack, end.fin) for end in watch.track.ends] == numbers
