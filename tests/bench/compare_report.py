"""The comparators' table: CPU time per packet side by side, what was promised of it, and what came out wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from statistics import median, quantiles

from rich.console import Console
from rich.table import Table

OURS, QEMU = "colo", "qemu"
BOUNDS = {64: 1.2, 512: 1.2, 1448: 1.0, 60_000: 0.6}
"""By payload: our CPU time per packet must be at most this many times QEMU's."""
FLATNESS = 1.25
"""The most connections may cost this many times what one costs, per packet."""


@dataclass(frozen=True, order=True)
class Row:
    """One row of a table.

    Attributes:
        latency: with one packet outstanding. payload: bytes of TCP payload in each packet.
    """

    latency: bool
    payload: int
    connections: int

    @property
    def label(self) -> str:
        text = f"{self.payload:,} bytes, {self.connections:,} connection{'s' if self.connections != 1 else ''}"
        return f"{text}, one packet at a time" if self.latency else text


@dataclass(frozen=True)
class Run:
    """What one run gave: what the feeder counted, and what the comparator's process used.

    Attributes:
        disorder: packets that were not the next of their connection. altered: that are not what the primary sent.
        uneven: connections of which not every packet came out just once. stalled: nothing came out any more.
        requests: checkpoints that were asked for, though the streams are equal.
        frame_bytes: of one released Ethernet frame. median_ns, p99_ns: a packet's round trip.
    """

    sent: int
    released: int
    seconds: float
    cpu_seconds: float
    frame_bytes: int
    disorder: int = 0
    altered: int = 0
    uneven: int = 0
    stalled: bool = False
    requests: int = 0
    median_ns: int | None = None
    p99_ns: int | None = None

    @property
    def cpu_us(self) -> float:
        """Microseconds of user and system time for each released packet."""
        return self.cpu_seconds / self.released * 1e6

    @property
    def rate(self) -> float:
        """Released packets per second."""
        return self.released / self.seconds

    @property
    def gigabits(self) -> float:
        """Gbit/s of released Ethernet frames, counted once."""
        return self.rate * self.frame_bytes * 8 / 1e9


@dataclass(frozen=True)
class Verdict:
    """Whether something that was promised holds; `ratio` is None where it was not measured."""

    text: str
    at_most: float
    ratio: float | None

    @property
    def met(self) -> bool | None:
        return None if self.ratio is None else self.ratio <= self.at_most

    @property
    def line(self) -> str:
        outcome = {None: "[yellow]not measured[/]", True: "[green]met[/]", False: "[red]MISSED[/]"}[self.met]
        return f"{self.text}: at most {self.at_most:g}: {_number(self.ratio)} {outcome}"


@dataclass
class Results:
    """Every run of every row of every comparator; `runs` are by turn, in which all stood beside each other."""

    subjects: list[str]
    rows: list[Row]
    about: dict[str, str] = field(default_factory=dict)
    runs: dict[tuple[str, Row], dict[int, Run]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def add(self, subject: str, row: Row, run: Run, *, turn: int) -> None:
        """Keep a run whose packets came out; say what was wrong with it."""
        self.failures += [f"{subject}, {row.label}: {what}" for what in wrongs(subject, run)]
        if run.released and not run.stalled:
            self.runs.setdefault((subject, row), {})[turn] = run

    def of(self, subject: str, row: Row) -> list[Run]:
        """All runs of a row of a comparator."""
        return [*self.runs.get((subject, row), {}).values()]

    def middle(self, subject: str, row: Row, value: Callable[[Run], float | None]) -> float | None:
        """The median over the turns, None when nothing was measured."""
        values = [got for run in self.of(subject, row) if (got := value(run)) is not None]
        return median(values) if values else None

    def quotient(
        self, above: tuple[str, Row], below: tuple[str, Row], value: Callable[[Run], float | None]
    ) -> float | None:
        """The median of what each turn's two runs are to each other: they shared what the machine was like then."""
        one, other = self.runs.get(above, {}), self.runs.get(below, {})
        pairs = [(value(one[turn]), value(other[turn])) for turn in one.keys() & other.keys()]
        quotients = [each for pair in pairs if (each := _quotient(*pair)) is not None]
        return median(quotients) if quotients else None

    def cpu(self, subject: str, row: Row) -> float | None:
        return self.middle(subject, row, lambda run: run.cpu_us)

    def ratio(self, row: Row, value: Callable[[Run], float | None] = lambda run: run.cpu_us) -> float | None:
        """Ours by QEMU's."""
        return self.quotient((OURS, row), (QEMU, row), value)

    def disorder(self, subject: str, row: Row) -> float | None:
        """The share of packets that were not the next of their connection, over all turns."""
        runs = self.of(subject, row)
        return _quotient(sum(run.disorder for run in runs), sum(run.released for run in runs) or None)


def wrongs(subject: str, run: Run) -> Iterator[str]:
    """What a run must not show. That QEMU releases out of order when its reader is slow is known, and in the table."""
    if run.stalled:
        yield "it came to a halt"
    if run.released != run.sent:
        yield f"{run.released:,} of {run.sent:,} packets were released"
    elif run.uneven:
        yield f"{run.uneven:,} connections had packets released twice, and others not at all"
    if run.altered:
        yield f"{run.altered:,} packets came out that are not the primary's"
    if run.disorder and subject != QEMU:
        yield f"{run.disorder:,} packets were released out of order"
    if run.requests:
        yield f"{run.requests:,} checkpoints were asked for, and the streams are equal"


def verdicts(results: Results) -> list[Verdict]:
    """What was promised: CPU time per packet beside QEMU's for each row, and many connections beside one."""
    made = [
        Verdict(f"{row.label}: {OURS} / {QEMU}", BOUNDS[row.payload], results.ratio(row))
        for row in results.rows
        if not row.latency and row.payload in BOUNDS and {OURS, QEMU} <= {*results.subjects}
    ]
    for payload in sorted({row.payload for row in results.rows if not row.latency}):
        counts = sorted(row.connections for row in results.rows if row.payload == payload and not row.latency)
        if len(counts) > 1 and OURS in results.subjects:
            few, many = ((OURS, Row(False, payload, count)) for count in (counts[0], counts[-1]))
            text = f"{OURS}, {payload:,} bytes: {counts[-1]:,} connections / {counts[0]:,}"
            made.append(Verdict(text, FLATNESS, results.quotient(many, few, lambda run: run.cpu_us)))
    return made


def _quotient(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def _number(value: float | None, form: str = ".2f") -> str:
    return "–" if value is None else format(value, form)


# ----------------------------------------------------------------------------------------------------------- for people


def print_all(results: Results, console: Console) -> None:
    """The head, the tables, what was promised and the failures."""
    for name, text in results.about.items():
        console.print(f"[bold]{name}[/]: {text}", highlight=False, soft_wrap=True)
    for rows, build in ((_rows(results, latency=False), _throughput), (_rows(results, latency=True), _latency)):
        if rows:
            console.print(build(results, rows))
    for verdict in verdicts(results):
        console.print(verdict.line, highlight=False, soft_wrap=True)
    for failure in results.failures:
        console.print(f"[red]failed[/] {failure}", highlight=False, soft_wrap=True)


def _rows(results: Results, *, latency: bool) -> list[Row]:
    return [row for row in results.rows if row.latency == latency]


def _table(results: Results, title: str, columns: tuple[str, ...], last: tuple[str, ...]) -> Table:
    turns = max((len(runs) for runs in results.runs.values()), default=0)
    table = Table(title=f"{title}: median (middle half) of {turns} turns; ratios are those of turns beside each other")
    table.add_column("payload", justify="right")
    table.add_column("conn.", justify="right")
    for subject in results.subjects:
        for column in columns:
            table.add_column(f"{subject}\n{column}", justify="right", no_wrap=True)
    if {OURS, QEMU} <= {*results.subjects}:
        for column in last:
            table.add_column(column, justify="right", no_wrap=True)
    return table


def _throughput(results: Results, rows: list[Row]) -> Table:
    columns = ("CPU µs/packet", "1000 packets/s", "Gbit/s", "disorder")
    table = _table(results, "CPU time per released packet", columns, (f"{OURS} /\n{QEMU}", "at\nmost", ""))
    for row in rows:
        cells = [f"{row.payload:,}", f"{row.connections:,}"]
        for subject in results.subjects:
            cells.append(_cpu_cell(results, subject, row))
            cells.append(_number(results.middle(subject, row, lambda run: run.rate / 1e3), ".1f"))
            cells.append(_number(results.middle(subject, row, lambda run: run.gigabits)))
            cells.append(_number(results.disorder(subject, row), ".1%"))
        if {OURS, QEMU} <= {*results.subjects}:
            ratio, bound = results.ratio(row), BOUNDS.get(row.payload)
            met = "" if ratio is None or bound is None else "[green]met[/]" if ratio <= bound else "[red]MISSED[/]"
            cells += [_number(ratio), _number(bound, "g"), met]
        table.add_row(*cells)
    return table


def _cpu_cell(results: Results, subject: str, row: Row) -> str:
    values = [run.cpu_us for run in results.of(subject, row)]
    if len(values) < 2:
        return _number(values[0] if values else None)
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def _latency(results: Results, rows: list[Row]) -> Table:
    columns = ("round trip µs", "p99 µs", "CPU µs/packet")
    last = (f"round trip\n{OURS} / {QEMU}", f"CPU\n{OURS} / {QEMU}")
    table = _table(results, "One packet outstanding", columns, last)
    for row in rows:
        cells = [f"{row.payload:,}", f"{row.connections:,}"]
        for subject in results.subjects:
            cells.append(_number(results.middle(subject, row, _median_us), ".1f"))
            cells.append(_number(results.middle(subject, row, _p99_us), ".1f"))
            cells.append(_cpu_cell(results, subject, row))
        if {OURS, QEMU} <= {*results.subjects}:
            cells += [_number(results.ratio(row, _median_us)), _number(results.ratio(row))]
        table.add_row(*cells)
    return table


def _median_us(run: Run) -> float | None:
    return None if run.median_ns is None else run.median_ns / 1e3


def _p99_us(run: Run) -> float | None:
    return None if run.p99_ns is None else run.p99_ns / 1e3


# --------------------------------------------------------------------------------------------------------- for programs


def as_json(results: Results) -> dict[str, object]:
    """Everything that was measured, without rounding."""
    return {
        "about": results.about,
        "results": [
            {
                "subject": subject,
                **asdict(row),
                "cpu_us_per_packet": results.cpu(subject, row),
                "packets_per_second": results.middle(subject, row, lambda run: run.rate),
                "gigabits_per_second": results.middle(subject, row, lambda run: run.gigabits),
                "runs": [{"turn": turn, **asdict(run)} for turn, run in runs.items()],
            }
            for (subject, row), runs in results.runs.items()
        ],
        "verdicts": [{**asdict(verdict), "met": verdict.met} for verdict in verdicts(results)],
        "failures": results.failures,
    }
