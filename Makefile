# `make demo` and `make test` set themselves up; both need Python >= 3.10 and make, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
IN_PARALLEL := --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: help setup demo test test-all lint docs dist clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/ready  ## a virtual environment with the project in it (the first time: several GB of PyTorch)

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python >= 3.10 is needed, and $(PYTHON) is `$(PYTHON) --version`: try make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "$(PYTHON) has no venv module: on Debian and Ubuntu, apt install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(VENV)/ready  ## train on the built-in toy dataset, a few minutes on a CPU
	$(BIN)/python train.py
	@echo "(python, dcal and tensorboard are in $(BIN): source $(BIN)/activate)"

test: $(VENV)/ready  ## the tests
	$(BIN)/python -m pytest -m "not slow" $(IN_PARALLEL)

test-all: $(VENV)/ready  ## the tests, with those that take minutes
	$(BIN)/python -m pytest

lint: $(VENV)/ready  ## ruff, and mypy on the public modules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/docs-ready  ## the documentation, into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/docs-ready: $(VENV)/ready
	$(BIN)/pip install --quiet --editable '.[docs]'
	@touch $@

dist: $(VENV)/ready  ## sdist and wheel in dist/, checked, and the wheel tried in an empty environment (several GB)
	$(BIN)/pip install --quiet build twine
	rm -rf build dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	PYTHON=$(PYTHON) .ci/try_wheel dist/*.whl

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache *.egg-info build dist site
