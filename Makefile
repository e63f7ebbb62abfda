# Two commands on a fresh machine with Python 3.11+: `make run` and `make test`. Everything goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help run test check docs fmt setup build clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: $(VENV)/.train  ## install, then the embedded default run: procedural corpus, small teacher, CPU
	$(BIN)/distill run

test: $(VENV)/.dev  ## install, then the tests
	$(BIN)/pytest

check: $(VENV)/.dev  ## linters, types, import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build && $(BIN)/pip install -q --no-deps --no-build-isolation --target build/view .
	cd build/view && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p distill
	cd build/view && PYTHONPATH=. ../../$(BIN)/lint-imports --config ../../pyproject.toml --no-cache

docs: $(VENV)/.docs  ## the documentation as a site, site/index.html, which needs no server
	rm -rf site
	$(BIN)/python -m sphinx -EWq --keep-going -d build/doctrees docs site

fmt: $(VENV)/.dev  ## format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.dev  ## the environment alone

build: $(VENV)/.dev  ## a wheel into dist/
	rm -rf build
	$(BIN)/pip wheel -q --no-deps -w dist .

clean:  ## remove the environment and build outputs
	rm -rf $(VENV) build dist site *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
		{ echo "Python 3.11 to 3.13 is needed, $$($(PYTHON) --version) found; name another: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -e '.[train]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -e '.[dev]'
	@touch $@ $(VENV)/.train

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -e '.[docs]'
	@touch $@
