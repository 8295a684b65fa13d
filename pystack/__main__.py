"""`python -m pystack` is `pystack`."""

from pystack.cli import main

main(prog_name="pystack")
