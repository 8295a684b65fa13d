"""The keys of the file of `colo launch`: what each must be, and which option of it is meant."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeAlias, final

from colo.launch.checks import check_mac, check_program
from colo.launch.plan import ENGINES, Plan
from colo.qemu.machine import NICS
from pystack import Publish

MEMORY_MIB: Final = (16, 1 << 20)
CPUS: Final = (1, 64)
SECONDS: Final = (0.01, 86_400.0)
ACCELERATORS: Final = ("auto", "kvm", "tcg")

_INTERFACE: Final = re.compile(r"[!-.0-9;-~]{1,15}")

Reader: TypeAlias = Callable[[Any], Any]
"""Gives the value for `Plan` or `Guest`; raises `UsageError` (a sentence) or `Wrong` (what it must be)."""


class Wrong(Exception):
    """A value is not what its text says it must be."""


@final
@dataclass(frozen=True, slots=True)
class Key:
    """A key of the file.

    Attributes:
        option: the name of what it says, as `plan_of` takes it. read: turns its value into that.
        takes: what it must be, for a person.
    """

    option: str
    read: Reader
    takes: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise Wrong
    return value


def _path(value: Any) -> Path:
    if not _text(value):
        raise Wrong
    return Path(value)


def _number(least: int, most: int) -> Reader:
    def read(value: Any) -> int:
        if type(value) is not int or not least <= value <= most:
            raise Wrong
        return value

    return read


def _seconds(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not SECONDS[0] <= value <= SECONDS[1]:
        raise Wrong
    return float(value)


def _choice(*words: str) -> Reader:
    def read(value: Any) -> str:
        if value not in words:
            raise Wrong
        return str(value)

    return read


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Wrong
    return value


def _program(value: Any) -> str:
    if not _text(value):
        raise Wrong
    check_program(value)
    return str(value)


def _mac(value: Any) -> str:
    check_mac(_text(value))
    return str(value)


def _interface(value: Any) -> str:
    if not _INTERFACE.fullmatch(_text(value)):
        raise Wrong
    return str(value)


def _name(value: Any) -> str:
    return Plan(name=_text(value)).name


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Wrong
    return tuple(_text(element) for element in value)


def _publish(value: Any) -> tuple[Publish, ...]:
    return tuple(Publish.parse(text) for text in _texts(value))


def _environment(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or any(not name or "=" in name or "\0" in name for name in value):
        raise Wrong
    return {name: _text(word) for name, word in value.items()}


def _between(limits: tuple[float, float]) -> str:
    return f"from {limits[0]:g} to {limits[1]:.0f}"


_TIME: Final = f"a number of seconds {_between(SECONDS)}"
_PATH_TAKES: Final = "the path of a file"

KEYS: Final[Mapping[str, Mapping[str, Key]]] = MappingProxyType(
    {
        "": {
            "name": Key("name", _name, "letters, digits and hyphens"),
            "engine": Key("engine", _choice(*ENGINES), f"one of {', '.join(ENGINES)}"),
            "placing": Key("placing", _switch, "true or false"),
            "ready": Key("ready", _text, "a text"),
            "boot-timeout": Key("boot", _seconds, _TIME),
            "heartbeat": Key("heartbeat", _seconds, _TIME),
            "patience": Key("patience", _seconds, _TIME),
        },
        "guest": {
            "kernel": Key("kernel", _path, _PATH_TAKES),
            "initrd": Key("initrd", _path, _PATH_TAKES),
            "append": Key("append", _text, "a text"),
            "disk": Key("disk", _path, _PATH_TAKES),
            "overlay": Key("overlay", _path, _PATH_TAKES),
            "memory": Key("memory", _number(*MEMORY_MIB), f"a whole number of MiB {_between(MEMORY_MIB)}"),
            "cpus": Key("cpus", _number(*CPUS), f"a whole number {_between(CPUS)}"),
            "nic": Key("nic", _choice(*NICS), f"one of {', '.join(NICS)}"),
            "mac": Key("mac", _mac, "an address like 52:54:00:12:34:56"),
        },
        "network": {
            "publish": Key("publish", _publish, 'a list of texts like "127.0.0.1:8080:80"'),
            "tap": Key("tap", _interface, "the name of a TAP device, of up to 15 characters"),
        },
        "qemu": {
            "program": Key("qemu", _program, "the name or the path of a program"),
            "accel": Key("accel", _choice(*ACCELERATORS), f"one of {', '.join(ACCELERATORS)}"),
            "arguments": Key("extra", _texts, "a list of texts"),
            "environment": Key("environment", _environment, "a table of texts"),
        },
    }
)
"""Every key by its table."""

CONFLICTS: Final = (("publish", "tap"),)
"""Options of which only one can be; of a flag and a file, the flag is it."""
