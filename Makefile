# make course | test | test-fast | test-pythons | lab | notebooks | lint      (make alone explains them)
#
#   PYTHON=python3.12     the Python that creates .venv, 3.10 or later
#   TORCH_INDEX=URL       install torch from this package index and everything else from the default one. On Linux
#                         the default index may offer only the much larger CUDA build; PyTorch's index of CPU builds
#                         is https://download.pytorch.org/whl/cpu
#   WORKERS=0             run the tests in a single process

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup course test test-fast test-pythons lab notebooks lint

# A virtual environment contains absolute paths, so it cannot be moved: the stamp records where it was created.
HERE := $(shell test "$$(cat $(READY) 2>/dev/null)" = "$(CURDIR)" && echo yes)
ifneq ($(HERE),yes)
.PHONY: $(READY)
endif

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

course: $(READY) ## run all notebooks on the built-in corpus and write out/<run>/ (5 to 12 minutes)
	@$(BIN)/nanochat course

lab: $(READY) ## open the notebooks in JupyterLab
	@$(BIN)/nanochat lab

test: lint ## run the linter, then all tests
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-fast: $(READY) ## run only the fast tests
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not browser and not notebook"

test-pythons: ## run the fast tests with each Python from 3.10 to 3.13 on this machine
	@.ci/pythons

lint: $(READY) ## check rules and format with ruff, notebooks included, and types with mypy
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary

notebooks: $(READY) ## regenerate the committed notebooks with the outputs of a reference run
	@$(BIN)/nanochat course --reference

setup: $(READY) ## create .venv with the versions in constraints.txt (the other targets do this first)

# torch is installed first and by itself, since it may have to come from another index.
$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
	  { echo "no '$(PYTHON)' on this machine; install Python 3.10 or later, or name yours: make PYTHON=..." >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "'$(PYTHON)' is $$($(PYTHON) --version 2>&1); 3.10 or later is needed: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' has no venv; on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	@echo "setup 1/3: $(VENV) with $$($(PYTHON) --version)"
	@$(if $(HERE),,$(PYTHON) -m venv --clear $(VENV))
	@echo "setup 2/3: PyTorch (the largest download)"
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "setup 3/3: everything else"
	@$(PIP) -e '.[dev]'
	@printf '%s' "$(CURDIR)" >$@
