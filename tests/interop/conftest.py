"""A lab with servers in it, and `pystack` run there as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.interop import servers
from tests.interop.lab import SERVER, Lab, LabError

BIG = 200_000_000
MIDDLE = 20_000_000  # into QEMU
LITTLE = 1_000_000  # through an impaired link
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A private "host" whose resolver is the tests' own."""
    try:
        made = Lab()
    except LabError as error:
        pytest.fail(str(error), pytrace=False)
    with made:
        made.use_resolver(SERVER)
        made.let_users_read(ROOT, sys.prefix, sys.base_prefix)
        yield made


@dataclass(frozen=True)
class Files:
    """What the web server serves, by size."""

    directory: Path
    big: str  # SHA-256 of /big
    middle: str
    little: str


@pytest.fixture(scope="session")
def files(lab: Lab) -> Files:
    directory = lab.directory / "files"
    directory.mkdir()
    sizes = {"big": BIG, "middle": MIDDLE, "little": LITTLE}
    return Files(directory, **{name: servers.write_pattern(directory / name, size) for name, size in sizes.items()})


@pytest.fixture(scope="session")
def served(lab: Lab, files: Files) -> Iterator[subprocess.Popen[bytes]]:
    """The servers, listening at SERVER; the process, whose output says what they got."""
    process = lab.popen([sys.executable, "-m", "tests.interop.servers", SERVER, files.directory], cwd=ROOT, stderr=None)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process
    lab.end(process)


@pytest.fixture(scope="session")
def blob(lab: Lab) -> Path:
    """A file of servers.BLOB that every user may read."""
    path = lab.directory / "blob"
    path.write_bytes(servers.BLOB)
    return path


@dataclass(frozen=True)
class Pystack:
    """The `pystack` command of the Python that runs the tests (or of $PYSTACK), started in the lab."""

    lab: Lab
    as_user: bool

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        return [os.environ.get("PYSTACK") or str(Path(sys.executable).with_name("pystack")), *arguments]

    def __call__(
        self, *arguments: str, timeout: float = 60.0, stdin: bytes | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `pystack ARGUMENTS` to its end."""
        return self.lab.run(self.argv(*arguments), as_user=self.as_user, cwd=ROOT, timeout=timeout, stdin=stdin)

    def run(self, *command: str, options: Sequence[str] = (), timeout: float = 60.0, stdin: bytes | None = None) -> str:
        """Run COMMAND behind the stack and return what it printed; it must succeed."""
        done = self("run", *options, "--", *command, timeout=timeout, stdin=stdin)
        assert done.returncode == 0, f"status {done.returncode}: {done.stderr.decode(errors='replace')[-2000:]}"
        return done.stdout.decode()

    def shell(self, script: str, *, options: Sequence[str] = (), timeout: float = 60.0) -> str:
        """`run` for a line of shell."""
        return self.run("sh", "-c", script, options=options, timeout=timeout)

    def client(self, *arguments: object, options: Sequence[str] = (), timeout: float = 60.0) -> Any:
        """What a client of tests.interop.clients says behind the stack."""
        command = (sys.executable, "-m", "tests.interop.clients", *map(str, arguments))
        return json.loads(self.run(*command, options=options, timeout=timeout))

    @contextlib.contextmanager
    def stats(self) -> Iterator[tuple[list[str], dict[str, int]]]:
        """Options that have the gateway's figures written, and a dictionary that has them once the block is left."""
        figures: dict[str, int] = {}
        with tempfile.TemporaryDirectory(dir=self.lab.directory) as directory:
            Path(directory).chmod(0o777)
            file = Path(directory, "stats.json")
            yield ["--stats-json", str(file)], figures
            figures |= json.loads(file.read_text(encoding="utf-8"))["stats"]

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """`pystack ARGUMENTS` in the background, until the block is left."""
        process = self.lab.popen(self.argv(*arguments), as_user=self.as_user, cwd=ROOT, stderr=None)
        try:
            yield process
        finally:
            self.lab.end(process)


@pytest.fixture(params=["root", "user"])
def pystack(request: pytest.FixtureRequest, lab: Lab, served: object) -> Pystack:
    """The command, once with root's rights and once without, beside running servers."""
    return Pystack(lab, as_user=request.param == "user")
