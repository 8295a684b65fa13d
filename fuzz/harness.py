"""What every fuzz target shares: how it is written, found, seeded, run and replayed.

Writing a target
----------------
A target is a file `fuzz/fuzz_<name>.py`. Its first docstring line states the one invariant it checks. It exposes:

    "A frame cut at any byte parses to a packet or to None, and never raises."   # as a docstring

    from fuzz import harness
    from pystack.wire.packet import parse_untrusted

    SEEDS = [bytes.fromhex("..."), ...]     # valid inputs in this target's own format; at least one

    def target(data: bytes) -> None:        # an exception that leaves it is the finding
        ...

    if __name__ == "__main__":
        harness.main(__file__, target, include=["pystack"], seeds=SEEDS)

Optional module attributes: `MAX_LEN` (int, default 4096: longest input in bytes), `DICTIONARY` (file name under
`fuzz/dictionaries/`) and `custom_mutator(data: bytes, max_size: int, seed: int) -> bytes`.

Importing a target needs neither atheris nor anything else beyond pystack: pytest imports each one and runs it over its
seeds, its committed corpus and its regressions, each input whole and cut short. Do not import atheris in a target.
A target is called many thousand times per second: keep what it builds small and its own loops bounded.

Where things are
----------------
    fuzz/corpus/<name>/       committed seeds, beside SEEDS
    fuzz/regress/<name>/      inputs that once failed, run by pytest
    fuzz/dictionaries/*.dict  libFuzzer dictionaries
    .fuzz/<name>/             the growing corpus, not committed

Running
-------
    make fuzz TARGET=name TIME=60          python -m fuzz run name --time 60
    python -m fuzz --list                  python -m fuzz all --time 20       every target, two at a time, one table
    python -m fuzz replay name [FILE...]   runs inputs without atheris, for a debugger
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUZZ = ROOT / "fuzz"
PREFIX = "fuzz_"
DEFAULT_MAX_LEN = 4096
DEFAULT_INCLUDE = ("pystack", "colo")

# One input may take this long before libFuzzer calls it a hang; and the memory at which it calls it a leak.
HANG_SECONDS = 10
MEMORY_LIMIT_MB = 2048

Target = Callable[[bytes], None]
Mutator = Callable[[bytes, int, int], bytes]


@dataclass(frozen=True, slots=True)
class FuzzTarget:
    """A loaded target: its name (without the prefix), its function, and what it runs on."""

    name: str
    invariant: str
    function: Target
    seeds: tuple[bytes, ...]
    max_len: int
    dictionary: Path | None
    mutator: Mutator | None

    @property
    def regress_dir(self) -> Path:
        """Directory of the inputs that once failed."""
        return FUZZ / "regress" / self.name

    @property
    def corpus_dir(self) -> Path:
        """Directory of the committed seeds."""
        return FUZZ / "corpus" / self.name

    @property
    def work_dir(self) -> Path:
        """Directory of the corpus that libFuzzer grows; not committed."""
        return ROOT / ".fuzz" / self.name

    def inputs(self) -> Iterator[tuple[str, bytes]]:
        """Every known input as (label, bytes): seeds, committed corpus, regressions."""
        for index, seed in enumerate(self.seeds):
            yield f"seed-{index}", seed
        for folder in (self.corpus_dir, self.regress_dir):
            for path in sorted(folder.glob("*")) if folder.is_dir() else ():
                if path.is_file() and not path.name.startswith("."):
                    yield f"{folder.parent.name}/{path.name}", path.read_bytes()


def names() -> list[str]:
    """Names of all targets, sorted, without importing any."""
    return sorted(path.stem.removeprefix(PREFIX) for path in FUZZ.glob(f"{PREFIX}*.py"))


def load(name: str) -> FuzzTarget:
    """Import the target `name`; raises KeyError for an unknown name."""
    if name not in names():
        raise KeyError(name)
    module = importlib.import_module(f"fuzz.{PREFIX}{name}")
    dictionary = getattr(module, "DICTIONARY", None)
    return FuzzTarget(
        name=name,
        invariant=(module.__doc__ or "").strip().partition("\n")[0],
        function=module.target,
        seeds=tuple(module.SEEDS),
        max_len=getattr(module, "MAX_LEN", DEFAULT_MAX_LEN),
        dictionary=FUZZ / "dictionaries" / dictionary if dictionary else None,
        mutator=getattr(module, "custom_mutator", None),
    )


def cuts(data: bytes, limit: int = 64) -> Iterator[bytes]:
    """The input whole, and then cut at up to `limit` places spread over it, the shortest cut being empty."""
    yield data
    step = max(1, len(data) // limit)
    for end in range(0, len(data), step):
        yield data[:end]


def replay(target: FuzzTarget) -> int:
    """Run every known input of `target`, whole and cut; returns how many executions that took."""
    executions = 0
    for _label, data in target.inputs():
        for piece in cuts(data):
            target.function(piece)
            executions += 1
    return executions


def fuzz(name: str, include: Sequence[str], libfuzzer_args: Sequence[str]) -> None:
    """Run one target under atheris in this process; does not return (libFuzzer ends the process).

    The target is imported here, inside atheris' import hook, so that only it and the packages in `include` are
    instrumented: instrumenting the standard library costs speed and finds nothing of ours.
    """
    import atheris  # noqa: PLC0415  (only a fuzzing run needs it)

    os.chdir(ROOT)

    with atheris.instrument_imports(include=[*include, f"fuzz.{PREFIX}{name}"]):
        target = load(name)
    target.work_dir.mkdir(parents=True, exist_ok=True)
    target.regress_dir.mkdir(parents=True, exist_ok=True)
    for _label, data in target.inputs():
        (target.work_dir / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    argv = [
        f"{PREFIX}{name}",
        f"-artifact_prefix={target.regress_dir.relative_to(ROOT)}{os.sep}",
        f"-max_len={target.max_len}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MEMORY_LIMIT_MB}",
        "-print_final_stats=1",
        *([f"-dict={target.dictionary}"] if target.dictionary else []),
        *libfuzzer_args,
        str(target.work_dir),
    ]
    if target.mutator is None:
        atheris.Setup(argv, target.function)
    else:
        atheris.Setup(argv, target.function, custom_mutator=target.mutator)
    atheris.Fuzz()


def main(file: str, target: Target, *, include: Sequence[str] = DEFAULT_INCLUDE, seeds: Sequence[bytes] = ()) -> None:
    """Entry point of a target file started as a program: `python fuzz/fuzz_<name>.py [libFuzzer options]`.

    By now `__main__` has imported what it tests without instrumentation, so this starts the process over through
    `python -m fuzz run`. The seeds run once here first: one that fails is a mistake in the target, not a finding.
    """
    if not seeds:
        raise SystemExit(f"{file}: a fuzz target needs at least one seed in SEEDS")
    for seed in seeds:
        target(seed)
    name = Path(file).stem.removeprefix(PREFIX)
    os.chdir(ROOT)
    command = [sys.executable, "-m", "fuzz", "run", name, "--include", ",".join(include), "--", *sys.argv[1:]]
    os.execv(sys.executable, command)  # noqa: S606  (no shell wanted; our own interpreter)
