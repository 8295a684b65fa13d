"""What machines are told before COLO, by QEMU's version."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from colo.qemu.qmp import Monitor, MonitorError
from colo.qemu.settings import ON_DEMAND, UNLIMITED, enable_colo
from tests.interop import attach_fakes

PARAMETERS = ("migrate-set-parameters", {"x-checkpoint-delay": ON_DEMAND, "max-bandwidth": UNLIMITED})


class Refusing(attach_fakes.Monitor):
    """One that takes capabilities only with ``needed`` among them, and else says ``why``."""

    def __init__(self, path: Path, needed: str, why: str) -> None:
        self._needed = needed
        self._why = why
        super().__init__(path)

    def _answer(self, peer: socket.socket, asked: dict[str, Any]) -> None:
        names = {one["capability"] for one in asked.get("arguments", {}).get("capabilities", [])}
        if names and self._needed not in names:
            error = {"error": {"class": "GenericError", "desc": self._why}, "id": asked["id"]}
            peer.sendall(json.dumps(error).encode() + b"\r\n")
            return
        super()._answer(peer, asked)


def told(fake: attach_fakes.Monitor, path: Path) -> list[tuple[str, dict[str, Any]]]:
    """What a machine is told that took it."""

    async def enable() -> None:
        monitor = Monitor("machine", lambda *_: None)
        await monitor.connect(path, lambda: True)
        try:
            await enable_colo(monitor)
        finally:
            await monitor.close()

    with fake:
        asyncio.run(enable())
        return [said for said in fake.told if said[0].startswith("migrate-set")]


def capabilities(*names: str) -> tuple[str, dict[str, Any]]:
    return "migrate-set-capabilities", {"capabilities": [{"capability": name, "state": True} for name in names]}


def test_a_qemu_that_keeps_the_way_back_for_colo_is_told_of_colo_alone(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    assert told(attach_fakes.Monitor(path), path) == [capabilities("x-colo"), PARAMETERS]


def test_a_qemu_that_asks_for_the_return_path_gets_it(tmp_path: Path) -> None:
    """What 11.1.3 says."""
    path = tmp_path / "qmp"
    fake = Refusing(path, "return-path", "Capability 'x-colo' requires capability 'return-path'")
    assert told(fake, path) == [capabilities("return-path", "x-colo"), PARAMETERS]


def test_another_refusal_is_told(tmp_path: Path) -> None:
    path = tmp_path / "qmp"
    with pytest.raises(MonitorError, match=r"QEMU refuses migrate-set-capabilities: COLO is not compiled in\.$"):
        told(Refusing(path, "nothing", "COLO is not compiled in"), path)
