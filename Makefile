# Thin: what a target does is one command of the tools themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# A test that hangs fails by name; the longest waits up to ten minutes for a run.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --timeout 1200
READY := $(VENV)/.ready

# Rewriting the asserts of all tests takes each test process nine seconds: keep what was compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test cover test-system lint bench attacks audit clean

setup: $(READY)

$(READY): pyproject.toml deploy/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint deploy/constraints.txt --editable '.[site,simulation,dev]'
	touch $@

demo: setup
	$(BIN)/mmare-sim demo --out runs/demo

test: setup
	$(BIN)/pytest $(PARALLEL)

# The same tests with all their examples; fails below the share of branches in pyproject.toml.
cover: setup
	HYPOTHESIS_PROFILE=ci $(BIN)/pytest $(PARALLEL) --cov --cov-report=term:skip-covered

# Real processes spend most of their time waiting; each file has its ports, folders and network namespaces.
test-system: setup
	$(BIN)/pytest $(PARALLEL) -m '(slow or system) and not gpu and not bench $(EXCEPT)'

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/pytest -m bench -s

# What each protection leaves to an attacker, as tables.
attacks: setup
	$(BIN)/pytest -m bench -s tests/privacy/test_attacks.py

audit: setup
	$(BIN)/pip-audit --skip-editable

clean:
	rm -rf $(VENV) runs build dist
