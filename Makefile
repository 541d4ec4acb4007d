# `make help` lists what there is. Everything works from any folder (make -C PATH demo), a second
# time without reinstalling, and in two clones or two terminals at once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-long test-versions bench gpu-check docs setup ffcv lint format clean

ROOT := $(shell cd "$$(dirname "$(strip $(MAKEFILE_LIST))")" && pwd)
BIN := .venv/bin
# The demo's recipe, and the run that it is compared with: plain fine-tuning at a rate of its own.
CONTROL := recipe=control/mixed-domains
FINETUNED := runs/mixed-domains/finetune
# With bytecode, whatever the environment says: compiling takes every process a second or more.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --durations=20 --durations-min=0.5
# Without a home, caches stay in the clone. Settings (see tools/setup.sh) come from the environment
# or as words: make setup ADAFILTER_FFCV=never
ifeq ($(HOME),)
export ADAFILTER_CACHE ?= $(ROOT)/.cache
endif

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' "$(ROOT)/Makefile" | expand -t 12

demo: setup  ## AdaFilter beside tuned fine-tuning where choosing filters pays; what the gates learned
	@cd "$(ROOT)" && $(BIN)/adafilter prepare $(CONTROL)
	@cd "$(ROOT)" && $(BIN)/adafilter train $(CONTROL) method=finetune optim.lr=0.01 \
		run_dir=$(FINETUNED)
	@cd "$(ROOT)" && $(BIN)/adafilter train $(CONTROL) evaluate.control=$(FINETUNED) \
		"evaluate.oracle={original: 0, inverted+turned: 1}"

# Tests wait for disks and processes: three share two cores. A cluster's jobs are interrupted
# at a step: they come last, with the cores to themselves.
test: lint  ## style, types, every test: the fast ones, those that start processes, a SLURM cluster
	@cd "$(ROOT)" && $(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder \
		-m "not slow and not distributed and not cluster"
	@cd "$(ROOT)" && $(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder \
		-m "(slow or distributed) and not cluster"
	@cd "$(ROOT)" && $(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -m cluster tests/cluster

test-long: setup  ## 500 kills (ADAFILTER_KILLS), and what else can happen on a cluster; an hour
	@cd "$(ROOT)" && $(PYTEST) -m long tests/kills
	@cd "$(ROOT)" && $(PYTEST) -m "cluster and long" tests/cluster
	@cd "$(ROOT)" && $(PYTEST) -m long tests/data tests/distributed tests/launch tests/models tests/training

test-fast: setup  ## the fast tests only
	@cd "$(ROOT)" && $(PYTEST) -n 3 --dist loadfile --no-loadscope-reorder \
		-m "not slow and not distributed and not cluster"

test-versions: setup  ## Python 3.11 to 3.13, oldest and newest torch (docs/versions.md); an hour
	@cd "$(ROOT)" && $(BIN)/python tools/versions.py $(VERSIONS)

bench: setup  ## timings beside plain fine-tuning: steps, inference, memory, loader; 10 minutes
	@cd "$(ROOT)" && $(BIN)/python benchmarks/speed.py train --repeats 7
	@cd "$(ROOT)" && $(BIN)/python benchmarks/speed.py infer --repeats 5
	@cd "$(ROOT)" && $(BIN)/python benchmarks/speed.py memory
	@cd "$(ROOT)" && $(BIN)/python benchmarks/loader_table.py --pictures 600 --rounds 3 --cold-rounds 0

docs: setup  ## docs/ as a site with search, in build/site; fails on a link that leads nowhere
	@cd "$(ROOT)" && $(BIN)/python tools/build_docs.py

# Installs nothing, so that it works on a GPU's node without a network; CHECK="--half 1" and the like.
gpu-check: PYTHON := $(if $(wildcard $(ROOT)/$(BIN)/python),$(ROOT)/$(BIN)/python,python3)
gpu-check:  ## all that only a GPU can show, with the Python at hand; 12 minutes on one
	@cd "$(ROOT)" && PYTHONPATH="$(ROOT)$${PYTHONPATH:+:$$PYTHONPATH}" \
		$(PYTHON) benchmarks/gpu_check.py $(CHECK)

setup:  ## Python packages and, where possible, FFCV
	@"$(ROOT)/tools/setup.sh"

ffcv:  ## try again to install FFCV
	@"$(ROOT)/tools/setup.sh" --ffcv

lint: setup  ## ruff and mypy
	@cd "$(ROOT)" && $(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy -n 2

format: setup  ## let ruff rewrite the code
	@cd "$(ROOT)" && $(BIN)/ruff check --fix . && $(BIN)/ruff format .

clean:  ## remove .venv and caches of the clone; runs and prepared data stay
	@cd "$(ROOT)" && rm -rf .venv .venv.lock .mypy_cache .ruff_cache .pytest_cache dist build
	@find "$(ROOT)" -name __pycache__ -prune -exec rm -rf {} +
