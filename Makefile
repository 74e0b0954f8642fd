# `make demo` trains and compares; `make test` proves; both build the same pinned environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM = false

.PHONY: venv demo test test-slow lowest newest check docs bench clean

venv: $(VENV)/.ready

# torch first and alone: its pinned version decides which build the other packages accept.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip "setuptools>=77" wheel
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev,metrics,peft,deepspeed,sweeps]"
	PYTHONWARNINGS=ignore $(BIN)/pip install --quiet --constraint constraints.txt --editable ".[reasoning_gym]" \
	  || echo "reasoning-gym could not be installed (a part of it needs a C compiler): its tests will be skipped."
	touch $@

demo: venv
	$(BIN)/rl-warmup demo --output runs/demo

# A file's tests stay in one process, as they share what its fixtures have trained.
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test: venv
	$(PYTEST) -m "not slow"

test-slow: venv
	$(PYTEST)

# The fast tests with the lowest versions that pyproject.toml allows, and with the newest: environments of their own.
# UV_TORCH_BACKEND=cpu takes torch without CUDA.
lowest: RESOLUTION = lowest-direct
newest: RESOLUTION = highest
lowest newest:
	$(PYTHON) -m venv $(VENV)-$@
	$(VENV)-$@/bin/pip install --quiet uv
	$(VENV)-$@/bin/uv pip install --python $(VENV)-$@/bin/python --upgrade --resolution $(RESOLUTION) \
	  --requirements pyproject.toml --extra dev --extra metrics --extra peft --extra deepspeed --extra sweeps
	$(VENV)-$@/bin/uv pip install --python $(VENV)-$@/bin/python --no-deps --editable .
	$(VENV)-$@/bin/python -m pytest --numprocesses 2 --dist loadfile -m "not slow" $(TESTS)

bench: venv
	$(BIN)/python -m benchmarks.step_cost --quick

# The site, into build/site: broken links and notebooks that fail are errors. RUN_NOTEBOOKS=false leaves out what takes minutes.
docs: venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	PYTHONPATH=. $(BIN)/mkdocs build --strict

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-lowest $(VENV)-newest runs build dist *.egg-info
