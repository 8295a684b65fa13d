"""Comparators and proxies without one of the conditions of output commit, each of which the simulation must find.

A mutant is a function that breaks something through pytest's ``monkeypatch``. Some replace a method; those of the fast
lanes, whose conditions are in line, replace a text of the source, which must be there.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from colo import lane, tcp_flow
from colo.checkpoint import Checkpoints, Step
from colo.compare import Comparator
from colo.datagram_flow import DatagramFlow
from colo.held import START, STOP, Record
from colo.lane import Lane
from colo.proxy import Proxy, Role
from colo.tcp_flow import TcpFlow
from colo.tcp_state import UNSET
from pystack.clock import Micros
from tests.sim.pair_scenario import PairScenario

Mutant: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def _always(*_: Any) -> bool:
    return True


def _never(*_: Any) -> bool:
    return False


def _method(owner: type, name: str, mutate: Callable[[Any], Any]) -> Mutant:
    """``owner.name`` replaced by what ``mutate`` makes of it."""
    return lambda patch: patch.setattr(owner, name, mutate(getattr(owner, name)))


def _source(name: str, *replaced: tuple[str, str]) -> Mutant:
    """``Lane.name`` with the second text of each pair in place of the first, wherever that stands."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(getattr(Lane, name)))
        for text, instead in replaced:
            assert text in source, f"not in {name}: {text}"
            source = source.replace(text, instead)
        names: dict[str, Any] = {}
        exec(compile(source, f"<mutant of {name}>", "exec"), vars(lane), names)
        patch.setattr(Lane, name, names[name])

    return apply


# ------------------------------------------------------------------------------------------------ what is looked at


def _any_syn(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TcpFlow, "_syn_covered", _always)


def _any_options(patch: pytest.MonkeyPatch) -> None:
    # They are looked at in two places: where a difference is found, and where a frame is released.
    patch.setattr(TcpFlow, "_syn_covered", lambda flow: flow._syn_s is not None)
    conflict = TcpFlow._conflict

    def blind(flow: TcpFlow) -> str:
        own, flow._syn_p = flow._syn_p, flow._syn_s if flow._syn_p is not None else None
        try:
            return conflict(flow)
        finally:
            flow._syn_p = own

    patch.setattr(TcpFlow, "_conflict", blind)


def _any_bytes(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tcp_flow, "_equal", _always)


def _piece_across_the_gap(original: Callable[..., None]) -> Callable[..., None]:
    """What lies beyond a gap is taken for what comes next."""

    def taken(flow: TcpFlow, piece: Any) -> None:
        shift = piece[START] - flow.s_nxt
        if flow.s_nxt != UNSET and shift > 0:
            piece = (piece[START] - shift, piece[STOP] - shift, *piece[2:])
        original(flow, piece)

    return taken


# ------------------------------------------------------------------------------------------------------- checkpoints


def _release_before_it_is_made(original: Callable[..., None]) -> Callable[..., None]:
    """What is held leaves when the checkpoint begins."""

    def step(proxy: Proxy, which: Step, now: Micros) -> None:
        original(proxy, which, now)
        if which is Step.PAUSED:
            proxy.comparator.commit(now)

    return step


def _release_though_it_failed(original: Callable[..., None]) -> Callable[..., None]:
    """What is held leaves when the checkpoint fails."""

    def step(proxy: Proxy, which: Step, now: Micros) -> None:
        if which is Step.FAILED:
            proxy.comparator.commit(now)
        original(proxy, which, now)

    return step


def _no_drain(original: Callable[..., None]) -> Callable[..., None]:
    """What was under way when both stood still is taken for what comes after the checkpoint."""

    def step(proxy: Proxy, which: Step, now: Micros) -> None:
        drain, proxy.drain = proxy.drain, None
        original(proxy, which, now)
        proxy.drain = drain

    return step


def _nothing_aside(original: Callable[..., None]) -> Callable[..., None]:
    """What both say after the copy, before it is known to be made, is taken for what was said before it."""

    def step(proxy: Proxy, which: Step, now: Micros) -> None:
        original(proxy, which, now)
        proxy._standing = False

    return step


def _let_the_held_go(original: Callable[..., list[bytes]]) -> Callable[..., list[bytes]]:
    """What only a dead primary had said leaves all the same."""

    def drop(comparator: Comparator) -> list[bytes]:
        held: list[Record] = comparator._flows.held()
        prefix = comparator._framing.prefix
        frames = [bytes(record[2][record[7] + prefix : record[8]]) for record in held]
        return frames + original(comparator)

    return drop


def _trust_the_primary(patch: pytest.MonkeyPatch) -> None:
    """Frames of the primary leave at once when the secondary has nothing to say about them yet."""
    patch.setattr(TcpFlow, "_covered", lambda flow, record: flow.s_nxt <= record[START])


def _hear_the_dead(original: Callable[..., None]) -> Callable[..., None]:
    """What a dead primary had under way leaves, when the secondary carries on already."""

    def take(proxy: Proxy, frame: bytes, now: Micros) -> None:
        if proxy.role is Role.SECONDARY_ALONE:
            proxy._to_client.append(frame)
        original(proxy, frame, now)

    return take


def _datagrams_alone(original: Callable[..., None]) -> Callable[..., None]:
    """A datagram of the primary leaves at once."""

    def primary(flow: DatagramFlow, *arguments: Any) -> None:
        original(flow, *arguments)
        while flow.held:
            flow.out.emit(flow.held.popleft())

    return primary


def _any_datagram(flow: DatagramFlow) -> None:
    """A datagram of the primary leaves with whatever the secondary sends next."""
    while flow.held and flow._theirs:
        flow._theirs.popleft()
        flow.out.emit(flow.held.popleft())


def _all_but_the_last(_: TcpFlow, record: Record) -> int:
    return record[STOP] - record[START] - 1


MUTANTS: dict[str, Mutant] = {
    "payload need not be covered": _method(TcpFlow, "_payload_covered", lambda _: _always),
    "payload need not be equal": _any_bytes,
    "a part of a frame need not be covered": _method(TcpFlow, "_part_covered", lambda _: _all_but_the_last),
    "an acknowledgement need not be the secondary's": _method(TcpFlow, "_ack_covered", lambda _: _always),
    "a SYN need not be the secondary's": _any_syn,
    "a SYN may negotiate something else": _any_options,
    "a FIN need not be the secondary's": _method(TcpFlow, "_fin_covered", lambda _: _always),
    "a RST need not be the secondary's": _method(TcpFlow, "_rst_covered", lambda _: _always),
    "a retransmission need not be the same": _method(TcpFlow, "_contradicts", lambda _: _never),
    "what is beyond a gap is compared": _method(TcpFlow, "_secondary_piece", _piece_across_the_gap),
    "a datagram need not be the secondary's": _method(DatagramFlow, "primary", _datagrams_alone),
    "a datagram need not be equal": _method(DatagramFlow, "_match", lambda _: _any_datagram),
    "who speaks first is right": _trust_the_primary,
    "held frames leave before the copy is made": _method(Proxy, "_step", _release_before_it_is_made),
    "held frames leave though the copy failed": _method(Proxy, "_step", _release_though_it_failed),
    "the links are not drained before the boundary": _method(Proxy, "_step", _no_drain),
    "what comes after the boundary is not kept aside": _method(Proxy, "_step", _nothing_aside),
    "a boundary is lifted when its time is over": _method(Checkpoints, "_overdue", lambda _: Checkpoints._fail),
    "held frames outlive the primary": _method(Comparator, "drop_held", _let_the_held_go),
    "frames of a dead primary are heard": _method(Proxy, "from_primary", _hear_the_dead),
    "lane: an acknowledgement need not be the secondary's, without payload": _source(
        "primary", ("elif not held and flow.p_ack <= flow.s_ack:", "elif not held:")
    ),
    "lane: an acknowledgement need not be the secondary's, secondary first": _source(
        "primary",
        (
            "(told == flow.s_told or (flow.p_ack <= flow.s_ack and flow.p_right <= flow.s_right))",
            "flow.p_right <= flow.s_right",
        ),
        ("not held and flow.p_ack <= flow.s_ack and flow.p_right", "not held and flow.p_right"),
    ),
    "lane: an acknowledgement need not be the secondary's, primary first": _source(
        "secondary",
        ("if single[4] == flow.s_told or flow.secondary_covers(single[4]):", "if flow.p_right <= flow.s_right:"),
        ("held[0] is record and record[4] <= flow.s_ack and", "held[0] is record and"),
    ),
    "lane: payload need not be equal, secondary first": _source(
        "primary",
        ("single[2].startswith(", "(lambda *_: True)("),
        ("piece[2].startswith(", "(lambda *_: True)("),
    ),
    "lane: payload need not be equal, primary first": _source(
        "secondary",
        ("single[2].startswith(", "(lambda *_: True)("),
        ("record[2].startswith(", "(lambda *_: True)("),
    ),
    "lane: what is beyond a gap is compared": _source("secondary", ("and seq == flow.s_nxt & MASK", "")),
}


def can_show(name: str, scenario: PairScenario) -> bool:
    """Whether ``scenario`` can show the mutant ``name``: false where it would only take time."""
    if name == "what is beyond a gap is compared":
        return scenario.loss[2] > 0.1 and scenario.sizes != () and max(map(sum, scenario.sizes)) > 10_000
    if name.startswith("a part of"):
        return scenario.offload
    if name.startswith("a datagram"):
        return bool(scenario.datagrams or scenario.pings)
    if not name.startswith("lane:"):
        return True
    if "acknowledgement" in name and "without" not in name:
        # Segments that carry both data and news of what was received, which the two machines have at different times.
        return scenario.framed and "echo" in scenario.kinds and scenario.delayed_ack[0] != scenario.delayed_ack[1]
    return scenario.framed
