"""`python -m pystack.cli` is `pystack`."""

from pystack.cli import main

main(prog_name="pystack")
