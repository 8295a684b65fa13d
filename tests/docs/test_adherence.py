"""The adherence tables under docs/rfc name code and tests that exist, and say `yes` of nothing that no test shows."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted((ROOT / "docs" / "rfc").glob("[0-9]*.md"))
STATUSES = {"yes", "partly", "no", "n/a"}


class Row(NamedTuple):
    """One line of a table: clause, requirement, status, code, test."""

    where: str
    clause: str
    requirement: str
    status: str
    code: str
    test: str


def rows(page: Path) -> Iterator[Row]:
    """The rows of every table of `page` that has a Status column."""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) == 5 and cells[0] != "Clause" and not set(cells[0]) <= set("-: "):
            yield Row(f"{page.name}:{number}", *cells)


def quoted(cell: str) -> list[str]:
    """What a cell names in backquotes."""
    return re.findall(r"`([^`]+)`", cell)


@cache
def names_in(path: str) -> frozenset[str]:
    """Names of the test functions and classes in a test file."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )


def code_exists(name: str) -> bool:
    """Whether `pystack.module.Class.method` can be imported and looked up."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("page", TABLES, ids=lambda page: page.stem)
def test_table_names_code_and_tests_that_exist(page: Path) -> None:
    wrong: list[str] = []
    for row in rows(page):
        if row.status not in STATUSES:
            wrong.append(f"{row.where}: {row.status!r} is not one of {sorted(STATUSES)}")
        if row.status in {"yes", "partly"} and not quoted(row.code):
            wrong.append(f"{row.where}: {row.clause} is said to be done, and no code is named")
        if row.status == "yes" and not quoted(row.test):
            wrong.append(f"{row.where}: {row.clause} is said to be done, and no test is named")
        wrong += [f"{row.where}: no such code: {name}" for name in quoted(row.code) if not code_exists(name)]
        for name in quoted(row.test):
            path, _, function = name.partition("::")
            if not (ROOT / path).is_file() or (function and function not in names_in(path)):
                wrong.append(f"{row.where}: no such test: {name}")
    assert not wrong, "\n".join(wrong)


def test_a_table_has_rows() -> None:
    assert all(any(True for _ in rows(page)) for page in TABLES)
