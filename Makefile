# Two commands do everything, set-up included: `make demo` and `make test`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.run
	$(BIN)/dtg demo demo/study --data demo/data

# whole files, in their order: the longest stand in the middle, and short ones fill up the end
test: $(VENV)/.test
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov=dtg_ray --cov-report=term $(PYTEST)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# torch first and by itself: asked for by another package, pip may take a build with gigabytes of CUDA
$(VENV)/.run: pyproject.toml constraints.txt
	@echo "setting up $(VENV), once: a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) torch
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run
	$(INSTALL) --editable .[test]
	@touch $@

$(VENV)/.dev: $(VENV)/.test
	$(INSTALL) --editable .[dev]
	@touch $@

clean:
	rm -rf $(VENV) demo .coverage* .pytest_cache .mypy_cache .ruff_cache
