# Both targets make their own environment in $(VENV) first; a second run reuses it.
VENV ?= .venv
PYTHON ?= python3
# Set TORCH="torch" for the newest.
TORCH ?= torch==2.13.0
# PyPI's torch for Linux brings CUDA. Without a GPU, PyTorch's own index of CPU builds is used, too, if it answers within
# three seconds. CPU_INDEX= leaves it out.
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
HAS_CPU_INDEX = [ -n "$(CPU_INDEX)" ] && [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi && \
	curl --silent --fail --location --max-time 3 --output /dev/null "$(CPU_INDEX)/torch/"
# Exact versions of everything else; CONSTRAINTS=/dev/null takes the newest that pyproject.toml allows.
CONSTRAINTS ?= requirements/ci.txt
EXTRAS := .[train,report,smollm2,dev]
BIN := $(VENV)/bin
# Test files run in three processes, each with one thread (tests/conftest.py): some wait for child processes of theirs.
PYTEST ?= -n 3 --dist loadfile --no-loadscope-reorder
# verl pins other versions than TRL: an environment of its own, with Python 3.11 or 3.12.
VENV_VERL ?= .venv-verl
PYTHON_VERL ?= $(PYTHON)

.PHONY: demo evidence-smoke evidence test test-all test-fast test-verl test-env lint unit lock clean

demo: $(VENV)/installed  ## evaluate, train GRPO and Fission-GRPO, evaluate, report (about 2 minutes on 2 cores)
	$(BIN)/python examples/demo.py --output runs/demo

evidence-smoke: $(VENV)/installed  ## the whole pipeline of benchmarks/evidence on two tiny arms (about a minute)
	$(BIN)/python benchmarks/evidence/run.py benchmarks/evidence/smoke.yaml --results runs/evidence_smoke
	$(BIN)/python benchmarks/evidence/analyse.py runs/evidence_smoke/smoke
	$(BIN)/fission-grpo report runs/evidence/smoke

evidence: $(VENV)/installed  ## what is missing of the suites (hours), then the analysis; goes on after a kill
	for suite in static episode confirm smollm2; do \
		$(BIN)/python benchmarks/evidence/run.py benchmarks/evidence/$$suite.yaml || exit 1; done
	$(BIN)/python benchmarks/evidence/analyse.py --all

test: lint unit  ## lint, types, tests

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

unit: $(VENV)/installed
	$(BIN)/pytest $(PYTEST) -m "not dear"

test-all: lint  ## with the dearest tests: four processes, sharded models, suites of evidence (two minutes more)
	$(BIN)/pytest $(PYTEST)

test-fast: $(VENV)/installed  ## the tests that take less than a minute together: no training, no child processes
	$(BIN)/pytest $(PYTEST) -m "not slow"

test-verl: $(VENV_VERL)/installed  ## verl's own trainer on a CPU with our hooks (docs/verl.md)
	OMP_NUM_THREADS=1 $(VENV_VERL)/bin/pytest tests/verl

$(VENV_VERL)/installed: pyproject.toml
	@echo "Installing into $(VENV_VERL), once: 2.1 GB and some minutes"
	$(PYTHON_VERL) -m venv $(VENV_VERL)
	if $(HAS_CPU_INDEX); then extra="--extra-index-url $(CPU_INDEX)"; fi; \
	$(VENV_VERL)/bin/pip install --quiet $$extra $(TORCH)
	$(VENV_VERL)/bin/pip install --quiet --editable '.[verl]' 'pytest>=8'
	touch $@

test-env: $(VENV)/installed  ## what the tests need, and nothing more

$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@echo "Installing into $(VENV), once: 1.8 GB and some minutes; 5 GB with a torch for CUDA"
	$(PYTHON) -m venv $(VENV)
	if $(HAS_CPU_INDEX); then extra="--extra-index-url $(CPU_INDEX)"; fi; \
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) $$extra $(TORCH)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '$(EXTRAS)'
	# BFCL's environments, judge and data: without the pins of its own dependencies, which it does not need here
	$(BIN)/pip install --quiet --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock
	touch $@

lock:  ## renew requirements/ci.txt from the ranges of pyproject.toml; then `make test`
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --dry-run --ignore-installed --report $(VENV)/lock.json $(TORCH) '$(EXTRAS)'
	$(BIN)/python scripts/lock.py $(VENV)/lock.json > requirements/ci.txt

clean:
	rm -rf $(VENV) $(VENV_VERL) runs
