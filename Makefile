# `make` alone lists what there is. Every target does its own set-up; nothing has to be installed first.
#
#   PYTHON=python3.12   another interpreter        ARGS="--json"   more arguments for demo, test, bench and soak
#   TORCH_INDEX=        the torch of pip's own index (with CUDA)    APT=no   never call apt-get

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
export VENV
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help setup setup-workstation setup-system demo test test-aarch64 check bench soak clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## make the virtual environment with everything for work on earshot
	@.ci/setup dev

setup-workstation:
	@.ci/setup workstation

setup-system:
	@.ci/system-packages

demo: setup-workstation ## from shipped models and clips to a report
	$(BIN)/earshot demo $(ARGS)

check: setup ## lint, format, types, layers, examples in the documents; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest -q tests/boundaries/test_docs_examples.py

test: setup setup-system check ## check, then all tests (those that need hours: make soak)
	$(BIN)/pytest $(ARGS)

test-aarch64: setup setup-system ## the device's own code and wheels on an emulated Cortex-A76 against this machine
	$(BIN)/pytest -m aarch64 tests/parity tests/session $(ARGS)

bench: setup ## measure, print figures
	$(BIN)/pytest -s tests/bench $(ARGS)

soak: setup setup-system ## kill, fuzz and load runs in full size
	$(BIN)/pytest -m soak $(ARGS)

clean: ## remove the environment, caches and build products; keeps sessions and runs
	@if [ -e $(VENV)/pyvenv.cfg ]; then rm -rf $(VENV); fi
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
