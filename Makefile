PYTHON ?= python3.11
RECIPE ?= paper
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo study test test-slow rehearsal check clean

# The environment is made once, and again when what it is made from has changed.
$(READY): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m microworld.demo --recipe $(RECIPE) $(ARGS)

study: $(READY)
	$(BIN)/python -m microworld.study $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

# Two libraries that slow down every import of transformers stay out of the environment, and serve these tests alone.
test-slow: $(READY)
	$(BIN)/pip install --quiet --upgrade --no-deps --constraint constraints.txt --target $(VENV)/slow bitsandbytes torchao
	PYTHONPATH=$(CURDIR)/$(VENV)/slow $(BIN)/python -m pytest -q -m slow --continue-on-collection-errors

# README's commands with full-size checkpoints, served by a Hub on this machine: docs/rehearsal.md. Not in CI.
rehearsal: $(READY)
	PYTHONPATH=tests $(BIN)/python -m rehearsal $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) demo_output build dist *.egg-info .pytest_cache .ruff_cache
