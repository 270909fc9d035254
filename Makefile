# Two commands do all the set-up on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow coverage lint bench gpu clean

demo: $(VENV)/.installed   ## map the bundled 3-bit checkpoint and evaluate it on bundled (synthetic) speech
	@mkdir -p build
	$(BIN)/memsim map demo --hardware best -o build/demo.mapped.safetensors --force
	$(BIN)/memsim eval build/demo.mapped.safetensors --data demo --reference demo-float --trials 3
	$(BIN)/memsim eval demo --data demo --reference demo-float --hardware paper --trials 3

test: lint                 ## lint, types, tests (by two processes, each of one thread)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile

test-slow: $(VENV)/.installed-slow   ## what takes longer, and new examples for the property-based tests
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m pytest -m "hypothesis and not slow" --hypothesis-profile explore

coverage: $(VENV)/.installed-dev   ## lines of memsim that make test runs, in the processes that it starts, too
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow"
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev   ## speed, as ratios to nn.Linear in the same run; make bench TABLES="reads scaling"
	$(BIN)/python -m tests.benchmarks $(TABLES)

GPU_PYTHON ?= python3
gpu:                       ## checks and speed on a GPU, in a Python that has torch with CUDA (5 minutes)
	$(GPU_PYTHON) -m tests.gpu

clean:
	rm -rf $(VENV) .coverage* build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-slow: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,external,fuzz]'
	@touch $@ $(VENV)/.installed $(VENV)/.installed-dev
