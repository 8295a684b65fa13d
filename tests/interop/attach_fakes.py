"""What `colo compare --qmp` meets, without machines: monitors that note what they are told, both ends of a stream."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from colo.qemu.colo_stream import Message

GREETING = '{"QMP": {"version": {}, "capabilities": []}}'
CAN: dict[str, Any] = {
    "query-migrate-capabilities": [{"capability": "x-colo", "state": True}],
    "query-commands": [{"name": "x-colo-lost-heartbeat"}],
    "query-migrate": {},
    "query-migrate-parameters": {"x-checkpoint-delay": 12_345},
}
"""What a QEMU with COLO answers; {} to everything else."""


class Monitor:
    """A QMP server for one client at a time."""

    def __init__(self, path: Path, greeting: str = GREETING, answers: Mapping[str, Any] | None = None) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self._answers = {**CAN, **(answers or {})}
        self._greeting = greeting
        self._listener = listening(path)
        self._peer: socket.socket | None = None
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self._peer, _ = self._listener.accept()
            if self._greeting:
                self._peer.sendall(self._greeting.encode() + b"\r\n")
            text, decoder = "", json.JSONDecoder()
            while data := self._peer.recv(1 << 16):
                text += data.decode()
                while text.strip():  # a client need not end its lines
                    try:
                        asked, end = decoder.raw_decode(text := text.lstrip())
                    except json.JSONDecodeError:
                        break
                    text = text[end:]
                    self._answer(self._peer, asked)

    def _answer(self, peer: socket.socket, asked: dict[str, Any]) -> None:
        self.told.append((asked["execute"], asked.get("arguments", {})))
        number = {"id": asked["id"]} if "id" in asked else {}
        answer = {"return": self._answers.get(asked["execute"], {})}
        peer.sendall(json.dumps(answer | number).encode() + b"\r\n")

    def names(self) -> list[str]:
        """What it was told, without the questions."""
        return [name for name, _ in self.told if name not in {*CAN, "qmp_capabilities", "query-status"}]

    def end(self) -> None:
        """As when its machine is killed."""
        self._listener.close()
        if self._peer is not None:
            self._peer.shutdown(socket.SHUT_RDWR)
            self._peer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.end()


class Stream:
    """Both ends of a migration: the primary connects, the secondary listens."""

    def __init__(self, through: Path, at: Path) -> None:
        listener = listening(at)
        self.primary = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.primary.connect(str(through))
        listener.settimeout(20)
        self.secondary, _ = listener.accept()
        listener.close()
        for end in (self.primary, self.secondary):
            end.settimeout(20)

    def from_primary(self, data: bytes | Message) -> None:
        self._hand_on(self.primary, self.secondary, data)

    def from_secondary(self, message: Message) -> None:
        self._hand_on(self.secondary, self.primary, message)

    @staticmethod
    def _hand_on(sender: socket.socket, receiver: socket.socket, data: bytes | Message) -> None:
        raw = data.to_bytes(4, "big") if isinstance(data, Message) else data
        sender.sendall(raw)
        got = b""
        while len(got) < len(raw):
            more = receiver.recv(len(raw) - len(got))
            assert more, "the stream was closed"
            got += more
        assert got == raw

    def enter(self) -> None:
        """The first copy."""
        self.from_primary(b"memory" * 1000)
        self.from_secondary(Message.CHECKPOINT_READY)

    def stop_both(self) -> None:
        self.from_primary(Message.CHECKPOINT_REQUEST)
        self.from_secondary(Message.CHECKPOINT_REPLY)
        self.from_primary(Message.VMSTATE_SEND)

    def load(self) -> None:
        self.from_primary(b"devices")
        self.from_secondary(Message.VMSTATE_RECEIVED)
        self.from_secondary(Message.VMSTATE_LOADED)

    def close(self) -> None:
        self.primary.close()
        self.secondary.close()


def listening(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.bind(str(path))
    sock.listen(1)
    return sock
