# One environment in .venv; every target sets it up first, so each command works on a fresh machine.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.PHONY: setup quickstart test lint format bench docs docs-tables notebooks clean

setup: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -e ".[dev,docs]"
	@touch $@

quickstart: setup  ## the whole pipeline on the synthetic catalogue
	$(BIN)/catalign run

test: setup  ## all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

lint: setup  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check ssl tests setup.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/catalign tables --check

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format ssl tests setup.py

bench: setup  ## the real catalogue: needs CATALIGN_DATA or network
	$(BIN)/catalign run experiment=fashion
	$(BIN)/catalign bench kagl runs/fashion/seed0 -o benchmarks/kagl/results

docs: setup  ## the documentation as a site, in site/; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-tables: setup  ## result tables of README and benchmarks from their JSON files
	$(BIN)/catalign tables

notebooks: quickstart  ## a picture of every notebook with its outputs; needs a Chromium
	PYTHONWARNINGS=ignore OMP_WAIT_POLICY=PASSIVE $(BIN)/python docs/rendered.py notebooks/*.ipynb -o notebooks/rendered

clean:
	rm -rf build dist site ssl/*.egg-info .mypy_cache .ruff_cache .import_linter_cache .pytest_cache
