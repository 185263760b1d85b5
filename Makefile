# Needs Python 3.11 or newer and pip. Everything is installed into VENV; nothing outside it is touched.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Processes that share out the files of tests.
TEST_WORKERS ?= 2
# Core mathematics and configuration: no Ray here, and no runs. Tests marked slow are left out.
FAST_TESTS := $(addprefix tests/,objectives configuration diffusion learners worlds support test_layout.py)
# In the order of tests/conftest.py; without the last word, files of few tests come last, however long they take.
# With compiled bytecode, which the many processes that tests start share: a quarter of the time of each start.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder
# One thread a process: with busy cores beside them, OpenMP pools are slower by orders of magnitude.
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-fast lint docs install install-dev clean

help: ## show this
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 24

demo: $(VENV)/.base ## fine-tune the embedded model and write a report: the main job, in minutes on a CPU
	$(BIN)/prdp train experiment=shapes_demo

test: $(VENV)/.dev lint ## check style and types, run all tests
	$(PYTEST)

test-fast: $(VENV)/.dev ## run the tests of core mathematics and configuration, in two minutes
	$(PYTEST) -m "not slow" $(FAST_TESTS)

lint: $(VENV)/.dev ## check style and types only
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/.dev ## build the documentation as a site, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

install: $(VENV)/.base ## set up VENV to run prdp

install-dev: $(VENV)/.dev ## set up VENV to develop prdp

clean: ## remove VENV, build products and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A Python without ensurepip (Debian's, without python3-venv) makes an empty environment, which its own pip can fill.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "prdp needs Python 3.11 or newer; this is " + sys.version.split()[0] + ": set PYTHON=")'
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; }

# pip compiles what it installs unless PYTHONDONTWRITEBYTECODE is set; uncompiled, diffusers takes twice as long to import.
PIP_INSTALL = env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt

$(VENV)/.base: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing prdp and what it needs into $(VENV): some minutes, torch alone is large."
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.dev: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing prdp, what it needs and the development tools into $(VENV): some minutes, torch alone is large."
	$(PIP_INSTALL) -e '.[dev]'
	touch $(VENV)/.base $@
