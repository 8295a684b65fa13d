"""What flowed, as a table for a person and as JSON for a program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pystack.errors import LinkError
from pystack.slirp.stats import GatewayStats

if TYPE_CHECKING:
    from rich.table import Table

    from pystack.cli.serving import Session

_UNITS = ("B", "kB", "MB", "GB", "TB")


def amount(count: float) -> str:
    """Bytes as a person reads them: three digits and a decimal unit."""
    unit = 0
    while count >= 1000 and unit + 1 < len(_UNITS):
        count /= 1000
        unit += 1
    return f"{count:.0f} {_UNITS[unit]}" if not unit or count >= 100 else f"{count:.3g} {_UNITS[unit]}"


def table(stats: GatewayStats, *, title: str = "What flowed", more: Sequence[tuple[str, str]] = ()) -> Table:
    """The figures that a person wants, without those that are zero and say nothing; ``more`` rows at the end."""
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - 30 ms, for those who ask for a table
    from rich.table import Table  # noqa: PLC0415

    rows = [
        ("TCP connections", f"{stats.tcp_opened:,}", True),
        ("  refused", f"{stats.tcp_refused:,}", stats.tcp_refused),
        ("  still open", f"{stats.tcp_active:,}", stats.tcp_active),
        ("Bytes to the host", amount(stats.bytes_to_host), True),
        ("Bytes to the guest", amount(stats.bytes_to_guest), True),
        ("Retransmissions", f"{stats.retransmissions:,}", True),
        ("UDP flows", f"{stats.udp_flows:,}", stats.udp_flows),
        ("DNS queries", f"{stats.dns_queries:,}", stats.dns_queries),
        ("Pings", f"{stats.pings:,}", stats.pings),
        ("Bad frames dropped", f"{stats.frames_bad:,}", stats.frames_bad),
    ]
    made = Table(title=title, box=SIMPLE_HEAD, show_header=False, title_justify="left")
    made.add_column()
    made.add_column(justify="right")
    for label, value, shown in rows:
        if shown:
            made.add_row(label, value)
    for row in more:
        made.add_row(*row)
    return made


def report(session: Session) -> None:
    """Do what --stats and --stats-json ask for.

    Raises:
        LinkError: the JSON cannot be written.
    """
    stats = session.gateway.stats()
    if session.settings.stats:
        from rich.console import Console  # noqa: PLC0415

        Console(stderr=True).print(table(stats))
    path = session.settings.stats_json
    if path is not None:
        write_json(session, stats, path)


def write_json(session: Session, stats: GatewayStats, path: Path) -> None:
    """Write the figures, every counter, and how much each table still holds."""
    told = {
        "stats": stats.as_dict(),
        "frames_moved": session.driver.frames_moved,
        "sizes": session.gateway.sizes(),
        "counters": dict(sorted((session.gateway.counters.snapshot() | session.link_counters.snapshot()).items())),
    }
    try:
        path.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise LinkError(f"{path} cannot be written: {error.strerror}.") from None
