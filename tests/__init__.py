"""The tests; packages, so that `python -m tests.bench` and `python -m tests.sim` run too."""
