# make demo: set up and run the main job.  make test: exactly what continuous integration runs.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint types format bench soak clean

help:
	@echo "make demo    set up .venv, train the same network by Hogwild! and synchronously, write a report"
	@echo "make test    format, lint, types, tests and documentation examples"
	@echo "make bench   compare with plain PyTorch and DistributedDataParallel; writes benchmarks/results"
	@echo "make soak    train in a storm of faults, beside runs that are left alone; some ten minutes"
	@echo "make format  rewrite the code in the project's format"
	@echo "make clean   remove .venv, caches and runs"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(f"freewheel needs Python 3.11 or newer, not {v.major}.{v.minor}; try: make PYTHON=python3.11") if v < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	$(BIN)/freewheel demo

test: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python -m benchmarks

soak: $(STAMP)
	$(BIN)/python -m benchmarks soak

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache runs
