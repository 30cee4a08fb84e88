# make course | test | test-fast | test-pythons | lab | notebooks | lint      (make alone explains them)
#
#   PYTHON=python3.12     the Python to make .venv with, 3.10 or later
#   TORCH_INDEX=URL       take torch from this index and everything else from the usual one. On Linux the usual
#                         index may offer only the CUDA build, which is far larger; PyTorch's own index of
#                         CPU builds is https://download.pytorch.org/whl/cpu
#   WORKERS=0             run the tests in one process

PYTHON ?= python3
TORCH_INDEX ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help setup course test test-fast test-pythons lab notebooks lint

# What is installed holds absolute paths, so a venv serves only where it was made: the stamp says where that is.
HERE := $(shell test "$$(cat $(READY) 2>/dev/null)" = "$(CURDIR)" && echo yes)
ifneq ($(HERE),yes)
.PHONY: $(READY)
endif

help: ## print this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'

course: $(READY) ## run every notebook on the embedded default and write out/<run>/ (12 to 14 minutes)
	@$(BIN)/nanochat course

lab: $(READY) ## open the course in JupyterLab
	@$(BIN)/nanochat lab

test: lint ## lint, then every test
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-fast: $(READY) ## the tests that take seconds
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not slow and not browser and not notebook"

test-pythons: ## the quick tests with each Python from 3.10 to 3.13 on this machine
	@.ci/pythons

lint: $(READY) ## ruff: rules and format, notebooks included
	@$(BIN)/ruff check --quiet --output-format concise .
	@$(BIN)/ruff format --quiet --check .

notebooks: $(READY) ## regenerate the committed notebooks, outputs included, from one reference run
	@$(BIN)/nanochat course --reference

setup: $(READY) ## make .venv with the versions of constraints.txt (every other target does this first)

# torch comes alone and before the rest: it is the one package that may have to come from another index.
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
