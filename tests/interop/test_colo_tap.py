"""A pair on a TAP device: IPv4 and IPv6, every card, and the primary's death in the middle of it."""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import closing

import pytest

from colo.launch.plan import GUEST_ADDRESS6
from tests.bench.pair_sides import Launched
from tests.interop.lab import Lab
from tests.interop.tap_client import ADDRESSES

pytestmark = [
    pytest.mark.requires("tap", "qemu", "busybox", "ping", "cc", "ip", "nsenter", "unshare", "setpriv"),
    pytest.mark.timeout(180),
    pytest.mark.alone,
]

SECONDS = 6


@pytest.mark.parametrize("nic", ["virtio-net-pci", "e1000", "rtl8139"])
def test_both_families_are_served_through_checkpoints_and_the_loss_of_the_primary(nic: str) -> None:
    with Lab() as lab, closing(Launched(lab, "x-colo", nic=nic)) as pair:
        lab.run(["ip", "address", "add", f"{GUEST_ADDRESS6.network[1]}/64", "dev", "colo0", "nodad"])
        assert lab.run(["ip", "-6", "route"]).stdout.count(b"colo0") >= 1
        client = lab.popen([sys.executable, "-m", "tests.interop.tap_client", str(SECONDS)], stderr=None)
        assert client.stdout is not None
        assert client.stdout.readline() == b"started\n"
        for _ in range(3):
            pair.ask("checkpoint")
        before = pair.status()
        os.kill(pair.primary, signal.SIGKILL)
        said = client.stdout.read()
        assert client.wait() == 0, said
        seen = json.loads(said)
        for address in ADDRESSES:
            assert seen[f"echo {address}"] > 10
            assert seen[f"download {address}"] > 1
            assert seen[f"datagram {address}"] > 10
            assert seen[f"ping {address}"] == 1
        print(f"\n  {nic}: {seen}, differences: {before['differences']}")
        # One that is asked for while a difference's is under way is served by that: the web server's Date may differ.
        assert sum(before["checkpoints_by_reason"].values()) >= 3, before
        assert before["checkpoints_by_reason"]["asked for"] >= 1, before
        assert pair.status()["primary"] == before["secondary"]
        pair.assert_no_panic()
