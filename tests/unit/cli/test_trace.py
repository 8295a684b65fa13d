"""`pystack trace FILE` prints one line for every frame."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from pystack.cli import main
from pystack.link.pcapng import PcapngWriter
from pystack.link.records import INBOUND, OUTBOUND

ARP = bytes.fromhex("ffffffffffff0200000000010806000108000604000102000000000a0a00020f0000000000000a000202")
NOON = 12 * 3600 * 10**9


@pytest.fixture
def capture(tmp_path: Path) -> Path:
    path = tmp_path / "two.pcapng"
    writer = PcapngWriter.create(path)
    writer.write(ARP, NOON, direction=INBOUND)
    writer.write(b"\0" * 10, NOON + 1_500_000, direction=OUTBOUND)
    writer.close()
    return path


def test_every_frame_is_a_line_with_its_time_and_direction(capture: Path) -> None:
    done = CliRunner().invoke(main, ["trace", str(capture)])
    assert done.exit_code == 0
    first, second = done.stdout.splitlines()
    assert first.startswith("12:00:00.000000 in  ARP, Request who-has 10.0.2.2 tell 10.0.2.15")
    assert second.startswith("12:00:00.001500 out ")


def test_count_stops_it(capture: Path) -> None:
    done = CliRunner().invoke(main, ["trace", "-c", "1", str(capture)])
    assert len(done.stdout.splitlines()) == 1


def test_a_file_that_ends_early_gives_its_frames_and_then_one_sentence(capture: Path) -> None:
    capture.write_bytes(capture.read_bytes()[:-4])
    done = CliRunner().invoke(main, ["trace", str(capture)])
    assert done.exit_code == 2
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr.count("\n") == 1
    assert "ends in the middle of a record" in done.stderr
