# make demo   text to a model that talks, in about six minutes on two cores
# make test   installs what the tests need and passes them all
# Both need Python >= 3.10 and make; `make test` a C++ compiler besides.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

# llama.cpp, which tests hold the engine against, is built from source: on all cores, and no more of it than is called.
LLAMA_CPP = CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_CURL=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$$(nproc 2>/dev/null || echo 2)

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/shearling prepare pystdlib --out data/pystdlib --vocab-size 4096 --overwrite
	rm -rf outputs/demo
	$(BIN)/shearling train configs/experiments/demo.yaml
	$(BIN)/shearling generate outputs/demo -i "def " -n 200 -t 0.8 -s 1

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build

# Where the system's Python comes without ensurepip, its own pip installs into the environment.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
		$(PYTHON) -m pip --python $(VENV)/bin/python install --quiet pip; }

# torch by itself first: a later resolver step then finds it there and fetches no second build of it.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	@echo "installing PyTorch and the other packages into $(VENV): once, a minute or a few"
	$(PIP) install -c constraints.txt torch
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(PIP) install -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "installing what the tests need: once, some minutes, most of them for llama.cpp, which a C++ compiler builds"
	$(LLAMA_CPP) $(PIP) install -c constraints.txt -e '.[dev]'
	touch $@
