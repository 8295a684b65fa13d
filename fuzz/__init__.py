"""Fuzz targets: one file per target, one invariant per file.

`fuzz/harness.py` says how a target is written; `python -m fuzz --help` runs them.
"""
