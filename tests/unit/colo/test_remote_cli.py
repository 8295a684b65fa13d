"""What a person gets wrong about a pair on two hosts is told in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from colo.cli import main
from pystack import UsageError

PROXY = {"client": "tap:tap0", "primary": "unix:net", "qmp": "unix:qmp", "secondary": "tcp:10.0.0.2:9000"}
SECONDARY = {
    "listen": "tcp:10.0.0.2:9000", "machine": "unix:net", "qmp": "unix:qmp", "incoming": "unix:state",
    "client": "tap:tap0",
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "changed", "sentence"),
    [
        ("proxy", {"client": "eth0"}, "--client: 'eth0' is no network: write tap:NAME, or unix:PATH"),
        ("proxy", {"qmp": "unix:qmp,server"}, "--qmp: another program listens at unix:qmp; leave ',server' out."),
        ("proxy", {"secondary": "10.0.0.2"}, "'10.0.0.2' is no address: write unix:PATH or tcp:HOST:PORT"),
        ("proxy", {"primary": "unix:qmp"}, "--primary and --qmp name the same socket"),
        ("proxy", {"detect": "499"}, "--detect is 499 ms: it must be at least twice --heartbeat, which is 250 ms."),
        ("secondary", {"incoming": "unix:state,server"}, "--incoming: another program listens at unix:state;"),
        ("secondary", {"client": "tap:"}, "--client: 'tap:' is no network"),
        ("proxy", {"qmp": ""}, "--qmp is missing: say where your machine is, or give --guest."),
        ("secondary", {"guest": "/nowhere/web.toml"}, "--machine is of a machine of yours: leave it out with --guest."),
        (
            "proxy",
            {"primary": "", "qmp": "", "guest": "/nowhere/web.toml"},
            "/nowhere/web.toml cannot be read: no such",
        ),
    ],
)
def test_a_persons_errors(command: str, changed: dict[str, str], sentence: str) -> None:
    """An option changed to "" is left out."""
    options = {**(PROXY if command == "proxy" else SECONDARY), **changed}
    words = [word for name, value in options.items() if value for word in (f"--{name}", value)]
    with pytest.raises(UsageError) as caught:
        main([command, *words], standalone_mode=False)
    assert sentence in str(caught.value)


def test_a_guest_that_cannot_be_on_two_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "disk").write_bytes(bytes(1000))
    config = tmp_path / "web.toml"
    config.write_text("[guest]\ndisk = 'disk'\noverlay = 'new'\n[qemu]\nprogram = 'true'\n")
    with pytest.raises(UsageError, match="is not sent to another host: leave overlay out"):
        main(
            ["proxy", "--client", "tap:tap0", "--secondary", "tcp:10.0.0.2:9000", "--guest", str(config)],
            standalone_mode=False,
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "web.toml"]
