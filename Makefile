# The virtual environment is .venv; PYTHON chooses the interpreter that makes it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart

.PHONY: install quickstart test test-slow lint docs bench clean

install: $(VENV)/installed

# Editable, so the package runs from this checkout; again only when the dependencies change.
$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[train,dev]"
	touch $@

quickstart: install
	$(BIN)/evolving-rl train --config=configs/alfworld_quickstart.py --workdir=$(WORKDIR)

test: install
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto -m "not slow"

test-slow: install
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n auto

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# The pages are Markdown; this runs their examples and compares them with the code.
docs: install
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q tests/test_docs.py tests/test_readme.py

bench: install
	for name in train_step generation alfworld_env mind2web_env; do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:
	rm -rf $(VENV) build dist *.egg-info
