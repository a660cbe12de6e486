# Every target does its own set-up on a machine with Python >= 3.11 and make.
#   make demo    a phantom study through a whole node, with a table of what was found beside the truth
#   make test    the tests; installs what they need        make test-long  torture, many seeds
#   make check   lint, types, layers, spelling             make run        serve with config.toml
#   make test-gpu  engines on an NVIDIA card; TensorRT itself must be installed for its part
#   make bench   speed beside dcmtk, Orthanc and pynetdicom; an hour, or minutes with ARGS=--quick
# CI=true makes a missing peer a failure; TRAIN=1 installs torch too; PYTHON=... chooses the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# The first that answers and is new enough: a name in PATH may be an empty shim.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
SEED ?= 20261120
VENV := .venv
BIN := $(VENV)/bin
PINS := pyproject.toml constraints.txt
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

# With CI=true or TRAIN=1 the tests of training run as well.
TEST_STAMP := $(if $(filter true 1,$(CI) $(TRAIN)),$(VENV)/.train,$(VENV)/.test)

# Test files that run side by side; most of the time they wait for quiet times and foreign programs.
JOBS ?= 2
BENCHMARKS ?= receive response send index queue load infer

.PHONY: help demo test test-long test-gpu bench check run clean peers install-train

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python >= 3.11 is needed; name one with PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.base: $(PINS) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.test: $(PINS) | $(BIN)/python
	$(INSTALL) -e ".[test,openvino,tensorrt-rtx]"
	@touch $@ $(VENV)/.base

$(VENV)/.check: $(PINS) | $(BIN)/python
	$(INSTALL) -e ".[test,check,openvino,tensorrt-rtx]"
	@touch $@ $(VENV)/.test $(VENV)/.base

$(VENV)/.bench: $(PINS) | $(BIN)/python
	$(INSTALL) -e ".[test,bench,openvino]"
	@touch $@ $(VENV)/.test $(VENV)/.base

$(VENV)/.train: $(PINS) | $(BIN)/python
	$(INSTALL) -e ".[test,train,openvino,tensorrt-rtx]" $(TORCH)
	@touch $@ $(VENV)/.test $(VENV)/.base

install-train: $(VENV)/.train

demo: $(VENV)/.base
	rm -rf demo
	$(BIN)/model-build phantom --out demo/study --seed $(SEED)
	$(BIN)/dicom-node demo demo/study --out demo

run: $(VENV)/.base
	$(BIN)/dicom-node serve --config config.toml

peers:
	tests/peers/install.sh

test: $(TEST_STAMP) peers
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-long: $(TEST_STAMP) peers
	$(BIN)/python -m pytest -m long --timeout 3600 $(ARGS)

test-gpu: $(TEST_STAMP)
	$(BIN)/python -m pytest -m gpu --timeout 3600 $(ARGS)

# All of them run, whichever misses a target.
bench: $(VENV)/.bench peers
	@missed=(); \
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGS) || missed+=("$$name"); done; \
	if (($${#missed[@]})); then echo "targets missed: $${missed[*]}" >&2; exit 1; fi

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy dicom_node model_build
	$(BIN)/lint-imports
	$(BIN)/codespell

clean:
	rm -rf build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
