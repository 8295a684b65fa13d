"""Everything that broke other stacks, one row each, against a whole gateway with a flow beside it.

For every row: nothing is raised, the counter that names the reason moves, every table stays within its bound, what is
sent in return is bounded, and a connection of somebody else in the same gateway goes on as if nothing had happened.

Numbers in names are the rows of the project's list of what broke other stacks. Rows about the bytes of one header come
from `tests.unit.wire.bad_input_rows`, those about what DHCP, DNS and the policy refuse from
`tests.unit.slirp.bad_input_rows`.
"""

from __future__ import annotations

import pytest

from pystack.wire import checksum
from tests.unit.bad_input import datagrams, ip, segments
from tests.unit.bad_input.bench import Bench, Program, Row, fragment, frames
from tests.unit.slirp.bad_input_rows import ROWS as SLIRP_ROWS
from tests.unit.wire.bad_input_rows import ROWS as WIRE_ROWS
from tests.unit.wire.bad_input_rows import Row as WireRow

# Who reads these is not part of the gateway: it has no TFTP server, and IPv6 is a later step.
NOT_READ = {"tftp": "slirp.udp_refused_by_policy", "ndp": "ipv6.unsupported"}
# Refused before its reason in the wire's list comes up.
EARLIER = {
    "DNS with 65,535 questions": "dns.bad_question_count",
    "24: UDP over IPv6 without checksum": "ipv6.unsupported",
}


def sends(*made: bytes) -> Program:
    """A program that sends frames that were made already."""
    return frames(lambda _bench: made)


def reason(row: WireRow) -> str:
    """The counter that a row of the wire's list moves in a gateway."""
    return EARLIER.get(row.name) or NOT_READ.get(row.reader) or row.counter


ALL = [
    *ip.ROWS,
    *segments.ROWS,
    *datagrams.ROWS,
    *(Row(row.name, sends(row.build()), reason(row)) for row in WIRE_ROWS),
    *(Row(row.name, sends(*row.frames), row.counter) for row in SLIRP_ROWS),
]


@pytest.mark.parametrize("row", ALL, ids=[row.name for row in ALL])
def test_bad_input(row: Row) -> None:
    bench = Bench()
    before = bench.rig.counters.snapshot()
    row.program(bench)
    changed = bench.rig.counters.since(before)
    assert any(name in changed for name in row.counter.split("|")), f"{row.counter} did not move, but {changed}"
    bench.check_bounds()
    bench.check_beside()
    # And in the end everything of the attacker's goes by itself.
    bench.run(1)
    bench.check_beside()


def test_names_are_unique() -> None:
    assert len({row.name for row in ALL}) == len(ALL)


def test_checksums_of_rows_are_meant() -> None:
    """A row that is dropped for a checksum it did not mean to break tests nothing."""
    bench = Bench()
    for frame in (bench.wire.udp(1, 2, b"x"), bench.to_gateway.echo(), fragment(bench, 0, bytes(8), more=True)):
        assert checksum.valid(frame[14:34])
