"""What a person gets wrong about a pair on two hosts is told in one sentence."""

from __future__ import annotations

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
    ],
)
def test_a_persons_errors(command: str, changed: dict[str, str], sentence: str) -> None:
    options = {**(PROXY if command == "proxy" else SECONDARY), **changed}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with pytest.raises(UsageError) as caught:
        main([command, *words], standalone_mode=False)
    assert sentence in str(caught.value)
