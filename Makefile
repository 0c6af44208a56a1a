# The two commands: `make demo` watches a real sweep, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CODE := dllm_sweep workers kernels db tests examples benchmarks

.PHONY: demo test check types install install-dev wheel clean

demo: $(VENV)/.installed
	$(BIN)/dllm-sweep launch examples/quickstart.yaml

# What starts Ray watches clocks and deaths of processes: it gets the machine to itself.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not gpu and not ray" --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not gpu"

check: $(VENV)/.installed-dev types
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)

# mypy follows neither the mapped folders nor the path shim: it checks a tree of links.
types: $(VENV)/.installed-dev
	rm -rf build/types && mkdir -p build/types/dllm_sweep
	ln -s $(CURDIR)/dllm_sweep/* $(CURDIR)/db $(CURDIR)/kernels $(CURDIR)/workers build/types/dllm_sweep/
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p dllm_sweep

wheel: $(VENV)/.installed-dev
	$(BIN)/python -m build

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt Makefile
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[worker]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev]"
	touch $@

clean:
	rm -rf build dist *.egg-info
