"""The TCP's data structures against naive models: assembler, send buffer, scoreboard."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pystack.tcp.assembler import Assembler
from pystack.tcp.sack import DUP_THRESH, Scoreboard
from pystack.tcp.sendbuf import SendBuffer

BASES = st.sampled_from([1, 0xFFFF_FFF0, (1 << 32) - 1, 1 << 32, (7 << 32) + 5])


class AssemblerMachine(RuleBasedStateMachine):
    """An `Assembler` beside a map from each byte's number to its value."""

    @initialize(base=BASES)
    def start(self, base: int) -> None:
        self.base = base
        self.nxt = base  # RCV.NXT: what lies before it is delivered
        self.model: dict[int, int] = {}
        self.delivered: dict[int, int] = {}
        self.assembler = Assembler(10_000)
        self.filler = 0

    @rule(offset=st.integers(0, 60), length=st.integers(1, 25))
    def insert(self, offset: int, length: int) -> None:
        """Any range, whatever it overlaps; each with bytes of its own, so that it shows which copy won."""
        self.filler = (self.filler + 1) % 251
        start = self.nxt + 1 + offset
        assert self.assembler.insert(start, bytes([self.filler]) * length)
        for at in range(start, start + length):
            self.model.setdefault(at, self.filler)
        (left, right), *_ = self.assembler.blocks(4)
        assert left <= start < right, "the first block is the one of the newest segment"

    @rule(length=st.integers(1, 40))
    def arrive_in_order(self, length: int) -> None:
        """Text at RCV.NXT, which the receiver delivers by itself, and then what continues behind it."""
        self.nxt += length
        for at in [at for at in self.model if at < self.nxt]:
            del self.model[at]
        taken = b"".join(self.assembler.take(self.nxt))
        expected = bytearray()
        while self.nxt in self.model:
            expected.append(self.model.pop(self.nxt))
            self.nxt += 1
        assert taken == expected

    @rule(offset=st.integers(0, 90))
    def truncate(self, offset: int) -> None:
        """The stream is found to end."""
        end = self.nxt + 1 + offset
        self.assembler.truncate(end)
        for at in [at for at in self.model if at >= end]:
            del self.model[at]

    @invariant()
    def equals_the_model(self) -> None:
        self.assembler._check()
        assert bool(self.assembler) == bool(self.model)
        numbers = {at for left, right in self.assembler.blocks(8) for at in range(left, right)}
        assert numbers <= set(self.model)
        held = {
            item.start + n: byte
            for item in self.assembler._ranges.values()
            for n, byte in enumerate(b"".join(item.chunks))
        }
        assert held == self.model


TestAssembler = AssemblerMachine.TestCase


@given(st.integers(1, 20), st.lists(st.integers(0, 200), max_size=60))
def test_assembler_refuses_pieces_beyond_its_bound(limit: int, starts: list[int]) -> None:
    assembler = Assembler(limit)
    for start in starts:
        assembler.insert(2 * start, b"x")
        assert assembler.pieces <= limit
        assembler._check()


class SendBufferMachine(RuleBasedStateMachine):
    """A `SendBuffer` beside plain bytes."""

    @initialize(base=BASES)
    def start(self, base: int) -> None:
        self.buffer = SendBuffer(base)
        self.base = base
        self.data = b""
        self.filler = 0

    @rule(length=st.integers(1, 5000), view=st.booleans())
    def append(self, length: int, view: bool) -> None:
        self.filler = (self.filler + 1) % 251
        data = bytes([self.filler]) * length
        self.buffer.append(memoryview(data) if view else data)
        self.data += data

    @rule(sizes=st.lists(st.integers(1, 10), max_size=300))
    def append_many_small(self, sizes: list[int]) -> None:
        for size in sizes:
            self.append(size, view=False)

    @rule(n=st.integers(0, 6000))
    def acknowledge(self, n: int) -> None:
        n = min(n, len(self.data))
        self.base += n
        self.data = self.data[n:]
        self.buffer.acknowledge(self.base)

    @rule(where=st.floats(0, 1), length=st.integers(1, 9000))
    def slices(self, where: float, length: int) -> None:
        if self.data:
            at = int(where * (len(self.data) - 1))
            length = min(length, len(self.data) - at)
            pieces = self.buffer.slices(self.base + at, length)
            assert b"".join(pieces) == self.data[at : at + length]
            assert len(pieces) <= length // 1024 + 3

    @invariant()
    def equals_the_bytes(self) -> None:
        assert len(self.buffer) == len(self.data)
        assert (self.buffer.base, self.buffer.end) == (self.base, self.base + len(self.data))


TestSendBuffer = SendBufferMachine.TestCase


def test_acknowledged_chunks_are_freed() -> None:
    buffer = SendBuffer(0)
    for _ in range(2000):
        buffer.append(bytes(3000))
        if len(buffer) > 30_000:
            buffer.acknowledge(buffer.base + 3000)
    assert sum(len(chunk) for chunk in buffer._chunks) <= 33_000
    assert len(buffer._chunks) < 1200


class ScoreboardMachine(RuleBasedStateMachine):
    """A `Scoreboard` beside a set of numbers."""

    @initialize(base=BASES)
    def start(self, base: int) -> None:
        self.board = Scoreboard()
        self.una = base
        self.model: set[int] = set()

    @rule(offset=st.integers(0, 80), length=st.integers(1, 30))
    def report(self, offset: int, length: int) -> None:
        start = self.una + offset
        news = set(range(start, start + length)) - self.model
        assert self.board.add(start, start + length) == len(news)
        self.model |= news

    @rule(n=st.integers(0, 60))
    def acknowledge(self, n: int) -> None:
        self.una += n
        self.board.acknowledge(self.una)
        self.model = {at for at in self.model if at >= self.una}

    @rule()
    def forget(self) -> None:
        self.board.clear()
        self.model.clear()

    @rule(offset=st.integers(-5, 90), length=st.integers(0, 60))
    def ask(self, offset: int, length: int) -> None:
        start = self.una + offset
        span = range(start, start + length)
        assert self.board.sacked_between(span.start, span.stop) == len(self.model & set(span))
        missing = [at for at in span if at not in self.model]
        hole = self.board.hole(span.start, span.stop)
        if not missing:
            assert hole is None
        else:
            first = missing[0]
            end = next((at for at in range(first, span.stop) if at in self.model), span.stop)
            assert hole == (first, end)

    @invariant()
    def equals_the_set(self) -> None:
        assert self.board.sacked == len(self.model)
        assert bool(self.board) == bool(self.model)
        ranges = list(self.board._ranges.items())
        assert all(right < left for (_, right), (left, _) in pairwise(ranges))

    @invariant()
    def loss_is_what_rfc_6675_calls_lost(self) -> None:
        """IsLost of section 4: DupThresh discontiguous ranges, or more than (DupThresh - 1) * SMSS bytes, above it."""
        smss = 10
        below = self.board.lost_below(smss)
        for at in range(self.una, self.una + 120):
            if at in self.model:
                continue
            above = {n for n in self.model if n > at}
            runs = sum(1 for n in above if n - 1 not in above)
            lost = runs >= DUP_THRESH or len(above) > (DUP_THRESH - 1) * smss
            assert (at < below) == lost


TestScoreboard = ScoreboardMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3)), max_size=900))
def test_scoreboard_is_bounded_and_never_claims_more_than_was_reported(reports: list[tuple[int, int]]) -> None:
    board = Scoreboard()
    reported: set[int] = set()
    for start, length in reports:
        board.add(3 * start, 3 * start + length)
        reported |= set(range(3 * start, 3 * start + length))
    assert len(board._ranges) <= 512
    assert board.sacked == sum(right - left for left, right in board._ranges.items()) <= len(reported)
