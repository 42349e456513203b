# All set-up is a prerequisite of every target that runs the project: `make demo` and `make test`
# work from a clean clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Paths below are relative, so that a folder with spaces in its path is no two words. So they must be
# relative to this file: `make -f` from elsewhere would install, and clean, there.
ifeq ($(wildcard mask_ray/horovod/build_gpu.sh),)
$(error run make in the folder of mask_ray: cd there, or make -C FOLDER)
endif

PYTHON ?= python3
TOOLS := .tools
VENV := .venv
UV_FOUND := $(shell command -v uv)
UV := $(or $(UV_FOUND),$(TOOLS)/uv/bin/uv)
# What has to be made before uv can be run.
UV_MADE := $(if $(UV_FOUND),,$(TOOLS)/uv/bin/uv)
CXX_FOUND := $(shell command -v $${CXX:-c++} || command -v g++ || command -v clang++)

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
# Ray's clients show the token of ~/.ray only if this says so; see SECURITY.md.
export RAY_AUTH_MODE ?= token

DATA ?=
WEIGHTS ?=
KEEP ?=
HAPROXY ?= 1
TESTS ?= tests/unit tests/integration tests/e2e
FAULTS ?= tests/faults
# Tests run in this many processes; those of one Ray or one file stay together.
PROCESSES ?= 2
# Handed to recipes by the environment: the shell reads no sign of a path as its own.
export DATA WEIGHTS

PYTEST = python -m pytest -n $(PROCESSES) --dist loadgroup --no-loadscope-reorder

NO_HAPROXY = $(if $(filter 0,$(HAPROXY)),--no-haproxy)

.PHONY: help setup demo serve test coverage test-faults check format docs horovod-gpu clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make demo DATA=/path/to/photos   train on your own folder, archive, URL, manifest or URI"
	@echo "  make demo WEIGHTS=imagenet       start from ImageNet weights (or a path) instead of none"
	@echo "  make demo KEEP=1                 leave Ray and the service running afterwards"
	@echo "  make serve HAPROXY=0             answer HTTP by Ray's Python proxy, also make demo"

setup: $(VENV)/.synced ## Install everything into .venv (about 4 minutes the first time)

demo: setup ## Train, evaluate, register, serve and ask: the whole line, on this machine
	@python -m mask_ray.demo $(if $(DATA),--data "$$DATA") $(if $(WEIGHTS),--backbone-weights "$$WEIGHTS") $(if $(KEEP),--keep) $(NO_HAPROXY)

serve: setup ## Serve the champion at http://127.0.0.1:8000 until Ctrl-C
	@exec python -m mask_ray.serve $(NO_HAPROXY)

test: setup ## Run unit, integration and e2e tests (TESTS=tests/unit/cli for some)
	@$(PYTEST) $(TESTS)

coverage: setup ## Run the same tests and print how much of mask_ray they reach
	@$(PYTEST) --cov $(TESTS)

test-faults: setup ## Run tests of kills, full disks, lost nodes, load and fuzzing
	@python -m pytest $(FAULTS)

# Parts that run side by side, each printed when it ends.
SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)
CHECKS := check-code check-types check-units

check: setup ## Check format, lint, types, import rules, generated docs; run unit tests
	@$(MAKE) --no-print-directory $(SYNC) --jobs=$(words $(CHECKS)) $(CHECKS)

.PHONY: $(CHECKS)
check-code:
	@ruff format --check .
	@ruff check .
	@lint-imports
	@if [ -f docs/generate.py ]; then python docs/generate.py --check; fi

check-types:
	@mypy

check-units:
	@$(PYTEST) -q tests/unit

format: setup ## Format the code and mend what the linter can
	@ruff format .
	@ruff check --fix .

docs: setup ## Build the documentation into site/; a broken link fails
	@python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 "$(UV)" run --locked --only-group docs mkdocs build --strict
	@echo "site/index.html"

horovod-gpu: | cuda compiler $(UV_MADE) ## Build Horovod with NCCL, for GPUs, as a wheel in dist/
	@UV="$(UV)" bash mask_ray/horovod/build_gpu.sh

# Only what these recipes have made. Links, and a .venv of somebody else's, stay.
clean: ## Remove .venv, .tools and caches that make made; runs and models in MASK_RAY_HOME stay
	@made=(); \
	for path in $(VENV) $(TOOLS); do \
	  if [ -L "$$path" ]; then echo "$$path is a link: left as it is"; \
	  elif [ -e "$$path/.made" ] || [ -e "$$path/.synced" ]; then made+=("$$path"); \
	  elif [ -e "$$path" ]; then echo "$$path was not made by make: left as it is"; fi; \
	done; \
	made+=(.pytest_cache .mypy_cache .ruff_cache .import_linter_cache); \
	for path in "$${made[@]}"; do if [ -e "$$path" ]; then echo "removing $$path"; rm -rf -- "$$path"; fi; done
	@find mask_ray jobs tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf -- {} + 2>/dev/null || true

# Before anything is downloaded.
.PHONY: compiler
compiler:
	@if [ -z "$(CXX_FOUND)" ]; then \
	  echo "error: no C++ compiler found; Horovod is built from source." >&2; \
	  echo "Install one: apt-get install g++ (Debian, Ubuntu), dnf install gcc-c++ (Fedora, RHEL)," >&2; \
	  echo "or xcode-select --install (macOS)." >&2; \
	  exit 1; \
	fi

.PHONY: cuda
cuda:
	@bash mask_ray/horovod/build_gpu.sh --check

$(TOOLS)/uv/bin/uv: | compiler
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: no $(PYTHON) found; Python 3.11 or 3.12 is needed." >&2; exit 1; }
	@echo "uv is not on the PATH: installing it into .tools/uv"
	@[ -e $(TOOLS) ] || { mkdir $(TOOLS) && touch $(TOOLS)/.made; }
	@$(PYTHON) -m venv $(TOOLS)/uv || { \
	  echo "error: $(PYTHON) cannot make a virtual environment (apt-get install python3-venv)," >&2; \
	  echo "or install uv yourself: https://docs.astral.sh/uv" >&2; exit 1; }
	@$(TOOLS)/uv/bin/pip install --quiet --disable-pip-version-check "uv>=0.8.4"

# Compiled once here, or each of the many processes that a run starts would compile its imports.
$(VENV)/.synced: pyproject.toml uv.lock | compiler $(UV_MADE)
	@echo "installing into .venv; the first time, building Horovod takes about 3 minutes"
	@[ -e $(VENV) ] || { "$(UV)" venv --quiet $(VENV) && touch $(VENV)/.made; }
	@"$(UV)" sync --locked --compile-bytecode
	@touch $@
