# Everything runs in a virtual environment of its own, made on the first call.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test test-cgroup2 check bench format clean

help:  ## Say what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Meseta needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[all]'
	@touch $@

demo: $(STAMP)  ## Count the words of the standard library on a real cluster, and kill a slave on the way
	$(BIN)/python -P tests/tools/demo.py

test: $(STAMP)  ## Run the tests (real processes and sockets; those that need root say so)
	$(BIN)/python -m pytest

test-cgroup2: $(STAMP)  ## Run the tests of isolation under cgroup v2, in a throw-away virtual machine (2 minutes)
	MESETA_TEST_SLOWNESS=20 tests/tools/with-cgroup2 -t 900 $(BIN)/python -m pytest -o timeout=600 \
		tests/cgroup2 tests/integration/test_isolation.py

check: $(STAMP)  ## Lint, formats, types, imports, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/tools/sizes.py
	$(BIN)/python tests/tools/core_imports.py

bench: $(STAMP)  ## Print one JSON line for each benchmark
	$(BIN)/python -P tests/bench/run_all.py

format: $(STAMP)  ## Put the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .import_linter_cache .hypothesis
