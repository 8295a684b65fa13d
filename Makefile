# Everything a developer types. Needs only Linux, make and Python >= 3.11; each target makes its own .venv.

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint format bench docs fuzz clean

VENV := .venv
BIN := $(VENV)/bin

# The first interpreter that is new enough and really runs (a version manager's shim may be there and not work).
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)

# What `make fuzz` runs, and for how many seconds (each, when it is all of them).
TARGET ?= all
TIME ?= 20

# More arguments for pytest (`make test ARGS="-k handshake -x"`) or for the benchmark (`make bench ARGS=--json`).
ARGS ?=

help: ## print this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
		|| grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer was not found: install it, or name it with make PYTHON=/path/to/python3." >&2; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "Python cannot make a virtual environment: install the package python3-venv (Debian, Ubuntu) and try again." >&2; exit 2; }

# One stamp for each set of packages, so that `make demo` does not install what only the tests need. A stamp is older
# than pyproject.toml after a change there, and only then is anything installed again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed ## transfers through the stack, checked; then two replicas, a difference and a failover
	@$(BIN)/pystack demo $(ARGS)
	@echo
	@$(BIN)/colo demo

# Pairs of machines have the processors to themselves; all other tests share them.
test: $(VENV)/.installed-test ## run all tests (ARGS="-k name" for some)
ifeq ($(strip $(ARGS)),)
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not alone"
	$(BIN)/python -m pytest -m alone
else
	$(BIN)/python -m pytest $(ARGS)
endif

coverage: $(VENV)/.installed-test ## the tests that need nothing of the system, and which lines they do not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --ignore tests/interop $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.installed-test ## ruff, mypy --strict and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-test ## rewrite the code as ruff wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench ## measure the gateway against slirp4netns, pasta and the kernel, in one table
	$(BIN)/python -m tests.bench gateway $(ARGS)

docs: $(VENV)/.installed-docs ## build the documentation into site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

fuzz: $(VENV)/.installed-fuzz ## fuzz TARGET=name for TIME=seconds, or all of them
	@if [ "$(TARGET)" = all ]; then $(BIN)/python -m fuzz all --time $(TIME); \
	else $(BIN)/python -m fuzz run $(TARGET) --time $(TIME); fi

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist site htmlcov .coverage .coverage.* .fuzz .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
