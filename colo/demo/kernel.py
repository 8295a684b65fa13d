"""`colo demo --kernel`: what a person sees of it."""

from __future__ import annotations

import json
from pathlib import Path

from colo.demo.show import Show
from colo.kernel.pair import KernelPair, Outcome, random_share
from colo.proxy import Proxy

_HEADING = "A web server twice, on two kernels' TCP, and one client: the primary is killed in the middle"


def run_kernel(connections: int, size: int, seed: int | None, json_file: Path | None, svg: Path | None) -> int:
    """Show it; the exit status says whether every checksum was right.

    Raises:
        UsageError: there can be no namespaces with TAPs.
        LinkError: the picture ``svg`` cannot be written.
    """
    last: list[Proxy] = []
    total = connections * size
    with Show(_HEADING) as show:

        def tell(received: int, proxy: Proxy) -> None:
            if not last:
                show.step(f"{connections} connections ask for {size:,} bytes each")
            last[:] = [proxy]
            show.refresh(proxy, f"{received / total:6.1%} of {total / 1e6:,.0f} MB have arrived")

        outcome = KernelPair(connections, size, random_share(seed), tell).run()
        _verdict(show, outcome, connections, total)
        show.finish(last[0], svg)
    if json_file is not None:
        fields = {
            "connections": connections,
            "bytes": total,
            "killed_at": outcome.killed_at,
            "failures": outcome.failures,
            "longest_silence_s": outcome.longest_silence,
            "seconds": round(outcome.seconds, 3),
            "checkpoints_wanted": len(outcome.asked),
        }
        json_file.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    return 0 if show.good else 1


def _verdict(show: Show, outcome: Outcome, connections: int, total: int) -> None:
    killed = outcome.killed_at >= 0
    show.step(f"the primary was killed when {outcome.killed_at / total:.0%} had arrived" if killed else
              "the primary was to be killed, and all had arrived before", good=killed)  # fmt: skip
    good = not outcome.failures
    show.step(
        f"{connections - len(outcome.failures)} of {connections} checksums right, no connection reset"
        if good
        else f"{len(outcome.failures)} connections failed: {outcome.failures[0]}",
        good=good,
    )
    show.step(
        f"{total / 1e6:,.0f} MB in {outcome.seconds:.1f} s; "
        f"the longest silence that a client saw: {outcome.longest_silence * 1000:,.0f} ms"
    )
