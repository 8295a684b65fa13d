"""`python -m fuzz`: list, run, replay the fuzz targets, or run all of them for a while."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fuzz import campaign, harness


def _known(name: str) -> str:
    if name not in harness.names():
        raise argparse.ArgumentTypeError(f"no fuzz target {name!r}; there are: {', '.join(harness.names()) or 'none'}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--list", action="store_true", help="print each target with the invariant it checks")
    commands = parser.add_subparsers(dest="command")
    run = commands.add_parser("run", help="run one target under atheris; what follows -- goes to libFuzzer")
    run.add_argument("name", type=_known)
    run.add_argument("--time", type=int, default=0, metavar="SECONDS", help="stop after this long (0: until stopped)")
    run.add_argument("--include", default=",".join(harness.DEFAULT_INCLUDE), help="packages to instrument")
    replay = commands.add_parser("replay", help="run known inputs, or FILEs, without atheris")
    replay.add_argument("name", type=_known)
    replay.add_argument("files", nargs="*", type=Path)
    everything = commands.add_parser("all", help="run every target for a while, and print one table")
    everything.add_argument("--time", type=int, default=20, metavar="SECONDS", help="seconds for each target")
    everything.add_argument("--jobs", type=int, default=2, help="how many at once")
    return parser


def main() -> int:
    """Run what the command line asks for; returns the exit code."""
    parser = _parser()
    arguments = sys.argv[1:]
    split = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:split])
    if options.list:
        for name in harness.names():
            print(f"{name:24} {harness.load(name).invariant}")
    elif options.command == "run":
        extra = [f"-max_total_time={options.time}"] if options.time else []
        harness.fuzz(options.name, options.include.split(","), [*extra, *arguments[split + 1 :]])
    elif options.command == "replay":
        target = harness.load(options.name)
        for path in options.files:
            target.function(path.read_bytes())
        print(f"{options.name}: {len(options.files) or harness.replay(target)} inputs, no finding")
    elif options.command == "all":
        return campaign.run_all(harness.names(), options.time, options.jobs)
    else:
        parser.print_help()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
