# The first of these that is Python 3.11 or later; `make PYTHON=...` chooses another.
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3 python
PYTHON ?= $(shell for name in $(PYTHONS); do \
	$$name -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && echo $$name && break; done)
FOUND = $(shell for name in python3 python; do \
	$$name -c "import sys; print('$$name is %d.%d' % sys.version_info[:2])" 2>/dev/null && break; done)
NO_PYTHON = Python 3.11 or later is needed ($(or $(FOUND),no Python was found)); to choose one: make PYTHON=...
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What lmms-eval imports, without the many packages of its tasks.
LMMS_EVAL := lmms_eval==0.7.3 filelock==3.32.7 chardet colorama dataproperty loguru lxml mbstrdecoder pathvalidate \
	portalocker pytablewriter sacrebleu tabledata tabulate tcolorpy tenacity typepy

.PHONY: demo study test test-slow rehearsal docs check clean

# The environment is created once, and again when one of these files changes.
$(READY): setup.py constraints.txt
	$(or $(PYTHON),$(error $(NO_PYTHON))) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(READY)

demo: $(READY)
	$(BIN)/python -m microworld.demo $(ARGS)

study: $(READY)
	$(BIN)/python -m microworld.study $(ARGS)

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 8 --dist worksteal

# Installed for these tests only: libraries that slow down every import of transformers; the driver of Chromium, which must be on
# the path (else the tests of the web page in a browser are skipped); and lmms-eval, which needs an old filelock.
$(VENV)/lmms_eval: $(READY)
	$(BIN)/pip install --quiet --upgrade --no-deps --target $@ $(LMMS_EVAL)

test-slow: $(VENV)/lmms_eval
	$(BIN)/pip install --quiet --upgrade --no-deps --constraint constraints.txt --target $(VENV)/slow bitsandbytes torchao \
		nncf ninja pydot tabulate playwright pyee greenlet
	PYTHONPATH=$(CURDIR)/$(VENV)/slow $(BIN)/python -m pytest -q -m slow --continue-on-collection-errors

# The README's commands with full-size checkpoints from a local Hub: docs/rehearsal.md. Not in CI.
rehearsal: $(READY)
	PYTHONPATH=tests/support $(BIN)/python -m rehearsal $(ARGS)

docs: $(READY)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	$(BIN)/mkdocs build --strict

# Style, the order of imports between packages, the sizes of functions and modules, and duplicate code.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_code_rules.py

clean:
	rm -rf $(VENV) site demo_output build dist *.egg-info .pytest_cache .ruff_cache
