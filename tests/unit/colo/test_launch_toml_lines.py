"""The line of every key of a TOML text, whatever stands around it."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colo.launch.toml_lines import KeyPath, key_lines

TEXT = """\
# name = "not here"
name = "a = b # no comment"   # size = 1

dotted.one = 1
dotted . "two = 2" . 'three' = '# = "'
long = \"\"\"
other = 1
[not.a.table]
it ends here: \\\"\"\" no, here: \"\"\"\"\"
raw = '''
also = 'not' \\
''\'''
list = [
    1, "]", # 2 = [
    [ 3,
      { x = "}", y = [
          4 ] } ],
    '''
    ''', 5
]

[ table . "sub table" ]
key = 1979-05-27 07:32:00 # a date with a blank
inline = { a = 1, b.c = { d = "," } }
[[many]]
first = 1
[many.under]
deep = true

[[many]]
first = 2
"""

LINES: dict[KeyPath, int] = {
    ("name",): 2,
    ("dotted",): 4,
    ("dotted", "one"): 4,
    ("dotted", "two = 2"): 5,
    ("dotted", "two = 2", "three"): 5,
    ("long",): 6,
    ("raw",): 10,
    ("list",): 13,
    ("list", 0): 14,
    ("list", 1): 14,
    ("list", 2): 15,
    ("list", 2, 0): 15,
    ("list", 2, 1): 16,
    ("list", 2, 1, "x"): 16,
    ("list", 2, 1, "y"): 16,
    ("list", 2, 1, "y", 0): 17,
    ("list", 3): 18,
    ("list", 4): 19,
    ("table",): 22,
    ("table", "sub table"): 22,
    ("table", "sub table", "key"): 23,
    ("table", "sub table", "inline"): 24,
    ("table", "sub table", "inline", "a"): 24,
    ("table", "sub table", "inline", "b"): 24,
    ("table", "sub table", "inline", "b", "c"): 24,
    ("table", "sub table", "inline", "b", "c", "d"): 24,
    ("many",): 25,
    ("many", 0): 25,
    ("many", 0, "first"): 26,
    ("many", 0, "under"): 27,
    ("many", 0, "under", "deep"): 28,
    ("many", 1): 30,
    ("many", 1, "first"): 31,
}


def paths(value: Any, at: KeyPath = ()) -> set[KeyPath]:
    """The path of everything in what tomllib has read."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {at} if at else set()
    for key, element in inner:
        found |= paths(element, (*at, key))
    return found


def test_every_key_and_element_has_its_line() -> None:
    assert set(LINES) == paths(tomllib.loads(TEXT))
    assert key_lines(TEXT) == LINES


KEYS = st.text("ab.=#[\"'\\ \n", min_size=0, max_size=4)
VALUES = st.recursive(
    st.integers(0, 9) | st.booleans() | st.text("ab=#[]{}\"'\\\n,", max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


def written(value: Any) -> str:
    """As TOML in one line; what JSON escapes, TOML does likewise."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return quoted(value)
        case list():
            return f"[{', '.join(map(written, value))}]"
        case dict():
            return f"{{{', '.join(f'{quoted(key)} = {written(element)}' for key, element in value.items())}}}"
    return str(value)


def quoted(text: str) -> str:
    for char, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(char, escape)
    return f'"{text}"'


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.integers(0, 3))
def test_whatever_is_written_is_found_again(document: dict[str, Any], blank: int) -> None:
    """Each key of the top in a line of its own: what is in it has that line too."""
    text = "".join("\n" * blank + f"{quoted(key)} = {written(value)} # =\n" for key, value in document.items())
    assert tomllib.loads(text) == document
    lines = key_lines(text)
    assert set(lines) == paths(document)
    for number, key in enumerate(document, start=1):
        assert {line for path, line in lines.items() if path[0] == key} == {number * (blank + 1)}


@given(st.text("ab=.#[]{}\"'\\\n, 1", max_size=40))
def test_what_is_no_toml_is_no_error(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in key_lines(text).values())


@pytest.mark.parametrize("text", ["a" * 5, "[" * 5000, "a = " + "[" * 5000, 'a = "', "[[a", "= 1", "a.=1"])
def test_what_is_no_toml_at_all_ends(text: str) -> None:
    assert len(key_lines(text)) <= len(text)
