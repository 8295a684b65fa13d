"""docs/reference/counters.md lists every counter that the code can bump, and none that it cannot."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "counters.md"
LAYERS = (
    "arp|capture|channel|checkpoint|compare|dhcp|dns|engine|ethernet|flow|gateway|host|icmp|icmpv6|impair|ip|ipv4|ipv6|link|mirror|neighbours|notify|pcap|ping|"
    "pair|policy|proxy|qemu|remote|rewriter|segment|slirp|stack|tap|tcp|tftp|udp|vlan|vnet"
)
NAME = re.compile(rf"({LAYERS})\.[a-z0-9_.]*[a-z0-9]")

FAMILY = re.compile(rf"({LAYERS})\.[a-z0-9_]+_")


def _files() -> set[Path]:
    return {path for package in ("pystack", "colo") for path in (ROOT / package).rglob("*.py")}


def counters_in_code() -> set[str]:
    """Every string in pystack and colo that has a counter's form: `layer.what`."""
    found: set[str] = set()
    files = _files() - {ROOT / "pystack" / "__init__.py"}  # which names modules
    for path in sorted(files):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                found.add(node.value)
    return found


def families_in_code() -> tuple[str, ...]:
    """What stands before the variable part of counters that are made as f"layer.prefix_{reason}"."""
    found: set[str] = set()
    for path in _files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr(values=[ast.Constant(value=str(first)), *_]) if FAMILY.fullmatch(first):
                    found.add(first)
    return tuple(found)


def counters_in_docs() -> set[str]:
    """The first cell of each row of the page's tables."""
    return set(re.findall(r"^\| `([a-z0-9_.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_counter_is_documented() -> None:
    assert sorted(counters_in_code() - counters_in_docs()) == []


def test_no_counter_is_documented_that_does_not_exist() -> None:
    unknown = counters_in_docs() - counters_in_code()
    assert sorted(name for name in unknown if not name.startswith(families_in_code())) == []
