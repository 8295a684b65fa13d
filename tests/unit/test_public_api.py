"""`import pystack` is cheap, and what it publishes exists."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import pystack


@pytest.mark.parametrize("name", pystack.__all__)
def test_published_name_exists(name: str) -> None:
    assert getattr(pystack, name) is not None


def test_names_are_published_once_and_have_a_home() -> None:
    assert len(set(pystack.__all__)) == len(pystack.__all__)
    assert set(pystack._HOME) == set(pystack.__all__) - {"__version__"}
    assert dir(pystack) == sorted(pystack.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = pystack.nonsense


def test_import_is_fast_and_loads_nothing_else() -> None:
    script = (
        "import sys, time; begin = time.perf_counter(); import pystack; took = time.perf_counter() - begin;"
        "import json; print(json.dumps([took, sorted(sys.modules)]))"
    )
    # The best of three: what is measured is the import and not what else the machine does.
    runs = [json.loads(subprocess.check_output([sys.executable, "-c", script])) for _ in range(3)]
    assert min(took for took, _ in runs) < 0.050
    loaded = {name.partition(".")[0] for _, modules in runs for name in modules}
    assert not loaded & {"construct", "click", "rich", "pyroute2", "pcapng", "pytun", "sortedcontainers", "asyncio"}
