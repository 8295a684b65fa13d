"""Reads the fenced code blocks of a Markdown page, with what the test shall do with each.

A block's language says what happens: `python` and `pycon` are executed, `console` lines that start with `$ ` are
checked as commands, anything else is left alone. An HTML comment on the line before the fence, which readers do not
see, changes that:

    <!-- output -->            this block is what the python block before it prints
    <!-- execute -->           this console block is run, and must print what it shows
    <!-- illustration: why --> this block is not run, for the reason given
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,})(?P<info>[^`]*)$")
_DIRECTIVE = re.compile(r"^\s*<!--\s*(?P<word>output|execute|illustration)(?::\s*(?P<why>.+?))?\s*-->\s*$")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block: where it starts, its language, its directive, and its text without indentation."""

    page: Path
    line: int
    language: str
    directive: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    """All fenced blocks of `page`, in order; an unclosed fence or a directive without a fence raises ValueError."""
    directive = ""
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), start=1)
    for number, line in lines:
        if found := _DIRECTIVE.match(line):
            directive = found["word"]
            if directive == "illustration" and not found["why"]:
                raise ValueError(f"{page}:{number}: an illustration says why it is not run")
            continue
        if not (fence := _FENCE.match(line)):
            if directive:
                raise ValueError(f"{page}:{number}: a directive stands right before its block")
            continue
        body: list[str] = []
        for _, text in lines:
            if text.strip() == fence["ticks"]:
                break
            body.append(text.removeprefix(fence["indent"]))
        else:
            raise ValueError(f"{page}:{number}: this block is never closed")
        language = fence["info"].split()[0] if fence["info"].split() else ""
        yield Block(page, number, language, directive, "\n".join(body) + "\n")
        directive = ""
