"""The file that says what `colo launch` is to run, in TOML: everything that the flags say, and what is wrong with it.

Sans-I/O but for reading the file and looking for those that it names. Every error is one sentence with file and line.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, final

from colo.launch.checks import check_kernel, check_readable
from colo.launch.keys import CONFLICTS, KEYS, Key, Wrong
from colo.launch.toml_lines import KeyPath, key_lines
from colo.qemu.machine import find_qemu
from pystack import UsageError

_LARGEST_BYTES: Final = 1 << 20
_SHOWN: Final = 60
_AT: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


@final
@dataclass(frozen=True, slots=True)
class Config:
    """What a file says.

    Attributes:
        path: the file. options: by name of the option. lines: where each is said.
    """

    path: Path
    options: Mapping[str, Any]
    lines: Mapping[str, int]

    def fail(self, option: str, sentence: str) -> NoReturn:
        """Raise what is wrong with what is said of ``option``."""
        raise UsageError(f"{self.path}, line {self.lines.get(option, 1)}: {sentence}")


def load(path: Path, flags: Collection[str] = ()) -> Config:
    """What the file at ``path`` says, its paths taken from where it lies, without what ``flags`` say otherwise.

    Args:
        flags: the options that are given on the command line, and win.

    Raises:
        UsageError: there is something wrong with it.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    said = parse(data, path)
    beaten = {beaten for one, other in CONFLICTS for flag, beaten in ((one, other), (other, one)) if flag in flags}
    config = Config(
        path, {name: said.options[name] for name in said.options if name not in {*flags, *beaten}}, said.lines
    )
    _check_conflicts(config, flags)
    return Config(path, {name: _found(config, name) for name in config.options}, said.lines)


def parse(data: bytes, path: Path) -> Config:
    """What ``data`` says, which was read from ``path``; of the files that it names nothing is looked at.

    Raises:
        UsageError: it is not TOML, or says what cannot be.
    """
    if len(data) > _LARGEST_BYTES:
        raise UsageError(f"{path}, line 1: this has more than 1 MiB, and is no configuration file: give another one.")
    text = _decoded(data, path)
    document = _document(text, path)
    lines = key_lines(text)
    options: dict[str, Any] = {}
    where: dict[str, int] = {}
    for table, content, at in _tables(document, lines, path):
        for key, value in content.items():
            line = _line(lines, (*at, key))
            known = KEYS[table].get(key)
            if known is None:
                raise UsageError(f"{path}, line {line}: {_unknown(table, key)}")
            options[known.option] = _read(known, value, f"{table}.{key}" if table else key, (*at, key), lines, path)
            where[known.option] = line
    return Config(path, options, where)


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}, line {line}: this is not UTF-8: save the file as UTF-8.") from None


def _document(text: str, path: Path) -> dict[str, Any]:
    lines = text.split("\n")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        said = str(error)
        at = _AT.search(said)
        line = int(at[1]) if at is not None and at[1] else len(text.rstrip().split("\n"))
        what = _AT.sub("", said)
        raise UsageError(f"{path}, line {line}: this is no TOML: {what[:1].lower()}{what[1:]}.") from None
    except RecursionError:
        line = 1 + max(range(len(lines)), key=lambda number: lines[number].count("[") + lines[number].count("{"))
        raise UsageError(f"{path}, line {line}: this is nested too deeply: nothing in here needs that.") from None
    except ValueError:  # a number of more digits than Python reads
        line = 1 + max(range(len(lines)), key=lambda number: sum(map(str.isdigit, lines[number])))
        raise UsageError(f"{path}, line {line}: this number is too long: give one that is in its range.") from None


def _tables(
    document: Mapping[str, Any], lines: Mapping[KeyPath, int], path: Path
) -> list[tuple[str, Mapping[str, Any], KeyPath]]:
    """Each table of `KEYS` that is there: its name, what it says, and its place."""
    found: list[tuple[str, Mapping[str, Any], KeyPath]] = []
    top: dict[str, Any] = {}
    for key, value in document.items():
        if key not in KEYS or not key:
            top[key] = value
        elif isinstance(value, dict):
            found.append((key, value, (key,)))
        else:
            line = _line(lines, (key,))
            raise UsageError(f"{path}, line {line}: {key} is {_shown(value)}: it must be a table, [{key}].")
    return [("", top, ()), *found]


def _read(known: Key, value: Any, name: str, at: KeyPath, lines: Mapping[KeyPath, int], path: Path) -> Any:
    """``value`` as its option takes it; what is wrong with an element of a list or table is said at its line."""
    try:
        return known.read(value)
    except (Wrong, UsageError):
        place, part = _culprit(known, value, at)
    try:
        known.read(part)
    except UsageError as error:
        raise UsageError(f"{path}, line {_line(lines, place)}: {str(error).removeprefix('--')}") from None
    except Wrong:
        pass
    shown = _shown(part[0] if place != at and isinstance(part, list) else part)
    raise UsageError(f"{path}, line {_line(lines, place)}: {name} is {shown}: it must be {known.takes}.")


def _culprit(known: Key, value: Any, at: KeyPath) -> tuple[KeyPath, Any]:
    """The place and the value of what ``known`` does not take: one element, in its list or table, or all of it."""
    parts: list[tuple[KeyPath, Any]] = []
    if isinstance(value, list) and _takes(known, []):
        parts = [((*at, index), [element]) for index, element in enumerate(value)]
    elif isinstance(value, dict) and _takes(known, {}):
        parts = [((*at, key), {key: element}) for key, element in value.items()]
    return next(((place, part) for place, part in parts if not _takes(known, part)), (at, value))


def _takes(known: Key, value: Any) -> bool:
    try:
        known.read(value)
    except (Wrong, UsageError):
        return False
    return True


def _line(lines: Mapping[KeyPath, int], at: KeyPath) -> int:
    while at and at not in lines:
        at = at[:-1]
    return lines.get(at, 1)


def _shown(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            said = f'"{value}"'
        case dict():
            said = f"a table with {', '.join(map(repr, value)) or 'nothing'}"
        case _:
            said = str(value)
    said = "".join(char if char.isprintable() else "?" for char in said)
    return said if len(said) <= _SHOWN else f"{said[: _SHOWN - 3]}..."


def _unknown(table: str, key: str) -> str:
    """What to say of a key that there is not: where it belongs, or what is called nearly so."""
    shown = _shown(f"{table}.{key}" if table else key)[1:-1]
    for other, keys in KEYS.items():
        if key in keys:
            return f"there is no {shown}: {key} belongs {f'in [{other}]' if other else 'above the first table'}."
    here = [*KEYS[table], *(name for name in KEYS if name and not table)]
    near = difflib.get_close_matches(key, here, n=1)
    if near:
        return f"there is no {shown}: did you mean {near[0]}?"
    return f"there is no {shown}: there are {', '.join(here)}."


def _check_conflicts(config: Config, flags: Collection[str]) -> None:
    for one, other in CONFLICTS:
        if config.options.get(one) and config.options.get(other):
            first, second = sorted((one, other), key=lambda option: config.lines[option])
            config.fail(second, f"{second} goes not with {first} (line {config.lines[first]}): give one of them.")
    for option in ("initrd", "append"):
        if config.options.get(option) and "kernel" not in config.options and "kernel" not in flags:
            config.fail(option, f"{option} is nothing without a kernel: say which, as guest.kernel.")
    if config.options.get("overlay") and "disk" not in config.options and "disk" not in flags:
        config.fail("overlay", "overlay is nothing without a disk: say which, as guest.disk.")


def _found(config: Config, option: str) -> Any:
    """The option's value; a path from the file's folder on. Fails where what it names is not there."""
    value = config.options[option]
    try:
        if isinstance(value, Path):
            value = config.path.parent / value
            if option != "overlay":  # which may be one to be made
                (check_kernel if option == "kernel" else check_readable)(value)
        elif option == "qemu":
            value = find_qemu(str(config.path.parent / value) if "/" in value else value)
    except UsageError as error:
        config.fail(option, str(error))
    return value
