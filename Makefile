# Every target makes its own virtual environment; nothing but Python 3.11+ and make is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE  # or each of hundreds of processes compiles all modules
.PHONY: help demo test test-all lint check mutation drill outage two-hosts bench bench-large soak audit lock clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

# uv, where there is one, takes seconds; pip takes a minute.
INSTALL = $(if $(shell command -v uv 2>/dev/null),uv pip install --python $(BIN)/python,\
  $(BIN)/pip install --disable-pip-version-check) --quiet

$(VENV)/installed: requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --require-hashes -r requirements-dev.lock
	$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

demo: $(VENV)/installed  ## Show it working, end to end, on an embedded Valkey and database
	@$(BIN)/workos-sync demo $(ARGS)

drill: $(VENV)/installed  ## Inject about 80 faults of 41 kinds into real processes while 20,000 events flow (12 minutes)
	@$(BIN)/python -m tests.drill $(ARGS)

outage: $(VENV)/installed  ## Let the events API fail and webhooks be lost for ten minutes (12 minutes; ARGS="--seconds 60")
	@$(BIN)/python -m tests.drill.outage $(ARGS)

two-hosts: $(VENV)/installed  ## Let two hosts share the work, and cut one off for a while (2 minutes; needs root)
	@$(BIN)/python -W ignore -m tests.benchmarks.two_hosts

# Many tests wait for processes: three workers more than there are cores.
PYTEST = $(BIN)/python -m pytest --dist=worksteal --maxprocesses=5 \
  --numprocesses=$$(( $$($(BIN)/python -c 'import os; print(os.cpu_count())') + 3 ))

test: $(VENV)/installed  ## Run the tests but the long ones (under 2½ minutes; SQLite, PostgreSQL and Valkey come with it)
	$(PYTEST) -m "not long" --one-database $(ARGS)
	@echo "Left out: the tests marked long, with whole processes, a browser and random histories. make test-all runs them."

test-all: $(VENV)/installed  ## Run all tests (about 12 minutes)
	$(PYTEST) $(ARGS)

lint: $(VENV)/installed  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test-all  ## What a change must pass

mutation: $(VENV)/installed  ## Mutate the decision, the auto-join rules and the views (20 minutes; ARGS=views)
	$(BIN)/python -m tests.mutation $(ARGS)

bench: $(VENV)/installed  ## Measure beside a limit and a baseline (65 minutes with ARGS='--rounds 3'); ARGS='--rows drain'
	$(BIN)/python -W ignore -m tests.benchmarks $(ARGS)

bench-large: $(VENV)/installed  ## Growth, queries and the upgrade with tables of many gigabytes
	$(BIN)/python -W ignore -m tests.benchmarks --large --rows growth,queries,upgrade $(ARGS)

soak: $(VENV)/installed  ## Half of the capacity for 30 minutes, then a burst: memory must not grow (ARGS="--minutes 1")
	$(BIN)/python -m tests.benchmarks.soak $(ARGS)

COMPILE = $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11
BUILD = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")

# requirements-dev.lock: everything. requirements.lock: the same versions of what runs, and of what builds the package.
lock: $(VENV)/installed  ## Write requirements.lock and requirements-dev.lock from pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(COMPILE) --extra dev --output-file requirements-dev.lock pyproject.toml
	$(BIN)/python -c '$(BUILD)' \
	  | $(COMPILE) --constraint requirements-dev.lock --output-file requirements.lock pyproject.toml -

audit: $(VENV)/installed  ## Check the locked packages for known vulnerabilities (needs the network)
	@$(BIN)/pip install --quiet --disable-pip-version-check pip-audit
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements-dev.lock --progress-spinner off \
	  || { echo "make audit: a package is vulnerable, or the advisory service did not answer: see above" >&2; exit 1; }

clean:  ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
