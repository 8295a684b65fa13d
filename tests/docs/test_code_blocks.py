"""Every code block of README.md and docs/ does what the page says."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import importlib
import inspect
import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import FunctionType
from typing import Any

import click
import pytest

from tests.docs.blocks import Block, read_blocks

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROGRAMS = ("pystack", "colo")
MAKE_TARGETS = set(re.findall(r"^([a-z]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


class PageRun:
    """Executes the blocks of one page in order; its python blocks share one namespace, like a sitting at the prompt."""

    def __init__(self) -> None:
        self.namespace: dict[str, Any] = {"__name__": "__docs__"}
        self.printed = ""

    def run(self, block: Block) -> None:
        """Do with `block` what its language and its directive say; raises AssertionError where the page is wrong."""
        if block.directive == "illustration":
            return
        if block.directive == "output":
            assert self.printed == block.text, f"{block.where}: this is not what the block before it prints"
        elif block.language == "python":
            self._python(block)
        elif block.language == "pycon":
            self._pycon(block)
        elif block.language == "console" and block.directive == "execute":
            _execute(block)
        elif block.language == "console":
            for command in _commands(block):
                check_command(command, block.where)

    def _python(self, block: Block) -> None:
        source = "\n" * block.line + block.text
        code = compile(source, str(block.page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            if code.co_flags & inspect.CO_COROUTINE:
                asyncio.run(asyncio.wait_for(FunctionType(code, self.namespace)(), 30))
            else:
                exec(code, self.namespace)  # the page's own code, which is what this test is for
        self.printed = output.getvalue()

    def _pycon(self, block: Block) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, {}, block.where, str(block.page), block.line)
        test.globs = self.namespace
        report = io.StringIO()
        result = doctest.DocTestRunner().run(test, out=report.write, clear_globs=False)
        assert not result.failed, report.getvalue()


def _commands(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ")
    return [line.removeprefix("$ ") for line in joined.splitlines() if line.startswith("$ ")]


def check_command(command: str, where: str) -> None:
    """Assert that a command line shown in the docs is one that this project understands."""
    words = shlex.split(command, comments=True)
    while words and (words[0] == "sudo" or re.fullmatch(r"[A-Z_]+=\S*", words[0])):
        words.pop(0)
    if words[0] in PROGRAMS:
        _check_click(words[0], words[1:], where)
    elif words[0] == "make":
        unknown = {word for word in words[1:] if "=" not in word} - MAKE_TARGETS
        assert not unknown, f"{where}: the Makefile has no target {unknown}"


def _check_click(program: str, arguments: list[str], where: str) -> None:
    if "--help" in arguments or "--version" in arguments:
        return
    main: click.Group = importlib.import_module(f"{program}.cli").main
    try:
        context = main.make_context(program, list(arguments))
        name, command, rest = main.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, rest, parent=context)
    except click.ClickException as error:
        pytest.fail(f"{where}: {program} {shlex.join(arguments)}: {error.format_message()}")


def _execute(block: Block) -> None:
    """Run each command of the block; together they print exactly what the block shows."""
    shown = "".join(line + "\n" for line in block.text.splitlines() if not line.startswith("$ "))
    printed = ""
    for command in _commands(block):
        words = shlex.split(command)
        if words[0] in PROGRAMS:
            words[:1] = [sys.executable, "-m", words[0]]
        elif words[0] == "python":
            words[0] = sys.executable
        environment = {**os.environ, "COLUMNS": "100"}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
        printed += done.stdout + done.stderr
    assert printed.rstrip() == shown.rstrip(), f"{block.where}: this is not what the commands print"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_on_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = PageRun()
    for block in read_blocks(page):
        run.run(block)


def test_a_python_block_that_fails_fails_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nassert 1 == 2\n```\n")
    with pytest.raises(AssertionError):
        PageRun().run(next(read_blocks(page)))


def test_output_that_differs_fails_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n```\n<!-- output -->\n```text\n2\n```\n")
    run = PageRun()
    first, second = read_blocks(page)
    run.run(first)
    with pytest.raises(AssertionError, match="not what the block before it prints"):
        run.run(second)


def test_a_command_with_an_unknown_option_fails_the_page() -> None:
    with pytest.raises(pytest.fail.Exception, match="No such option"):
        check_command("pystack run --no-such-option", "page.md:1")
    with pytest.raises(pytest.fail.Exception, match="Missing option '--out'"):
        check_command("colo mirror --in unix:/x", "page.md:1")
    with pytest.raises(AssertionError, match="no target"):
        check_command("make nonsense", "page.md:1")


def test_an_unclosed_block_is_an_error(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1)\n")
    with pytest.raises(ValueError, match="never closed"):
        list(read_blocks(page))
