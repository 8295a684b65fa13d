"""On which line of a TOML text each key stands: tomllib tells that of syntax errors, and not of what it has read.

A key is named by its path: ``("guest", "memory")`` for ``memory`` in ``[guest]`` and for ``guest.memory``, with an
index for an element of an array: ``("network", "publish", 1)``. Of a table that is begun again the first line counts.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from bisect import bisect_right
from collections.abc import Mapping
from typing import Final, TypeAlias, final

KeyPath: TypeAlias = tuple[str | int, ...]

_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE: Final = re.compile(r"[ \t]*")
_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_STRINGS: Final = (
    r'"""(?:[^"\\]|\\[\s\S]|"(?!""))*"{3,5}',
    r"'''(?:[^']|'(?!''))*'{3,5}",
    r'"(?:[^"\\\n]|\\.)*"',
    r"'[^'\n]*'",
)
_TEXT: Final = re.compile("|".join(_STRINGS))
"""A string of any of the four kinds; up to two quotes may stand before the three that end one."""
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")


def key_lines(text: str) -> Mapping[KeyPath, int]:
    """The line, from 1, of every key and every element of an array in ``text``, which tomllib has taken.

    Of a text that is no TOML it finds what it can, and does not raise.
    """
    scanner = _Scanner(text)
    with contextlib.suppress(_Astray, RecursionError):
        scanner.document()
    return scanner.found


class _Astray(Exception):
    """This is no TOML."""


@final
class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._elements: dict[KeyPath, int] = {}  # of arrays of tables: how many there were
        self.found: dict[KeyPath, int] = {}

    def document(self) -> None:
        table: KeyPath = ()
        while self._next():
            if self._take("[["):
                table = self._header(element=True)
                self._expect("]]")
            elif self._take("["):
                table = self._header(element=False)
                self._expect("]")
            else:
                self._pair(table)

    def _header(self, *, element: bool) -> KeyPath:
        path: KeyPath = ()
        parts = self._key()
        for number, part in enumerate(parts, start=1):
            path += (part,)
            self._note(path)
            if element and number == len(parts):
                self._elements[path] = self._elements.get(path, -1) + 1
            if path in self._elements:
                path += (self._elements[path],)
        self._note(path)
        return path

    def _pair(self, table: KeyPath) -> None:
        path = table
        for part in self._key():
            path += (part,)
            self._note(path)
        self._expect("=")
        self._value(path)

    def _value(self, path: KeyPath) -> None:
        self._next()
        if self._take("["):
            index = 0
            while not self._closed("]"):
                self._note((*path, index))
                self._value((*path, index))
                index += 1
        elif self._take("{"):
            while not self._closed("}"):
                self._pair(path)
        elif not self._match(_TEXT) and not self._match(_SCALAR):
            raise _Astray

    def _closed(self, end: str) -> bool:
        """Whether the array or inline table ends here; a comma before it is skipped."""
        self._next()
        if self._take(","):
            self._next()
        return self._take(end)

    def _key(self) -> list[str]:
        parts: list[str] = []
        while True:
            self._match(_SPACE)
            if word := self._match(_BARE_KEY):
                parts.append(word)
            elif word := self._match(_TEXT):
                parts.append(_unquoted(word))
            else:
                raise _Astray
            self._match(_SPACE)
            if not self._take("."):
                return parts

    def _note(self, path: KeyPath) -> None:
        self.found.setdefault(path, bisect_right(self._starts, self._at))

    def _next(self) -> bool:
        """Go to what comes next, behind blanks and comments; whether there is anything."""
        self._match(_BLANK)
        return self._at < len(self._text)

    def _match(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if match is None:
            return ""
        self._at = match.end()
        return match[0]

    def _take(self, word: str) -> bool:
        found = self._text.startswith(word, self._at)
        if found:
            self._at += len(word)
        return found

    def _expect(self, word: str) -> None:
        if not self._take(word):
            raise _Astray


def _unquoted(word: str) -> str:
    try:
        return str(tomllib.loads(f"key = {word}")["key"])
    except tomllib.TOMLDecodeError:
        raise _Astray from None
