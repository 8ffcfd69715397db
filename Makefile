# `make help` lists the targets.
# Each is self-contained: on a fresh machine it first does what `make setup` does.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help setup demo serve test test-slow test-gpu test-wheel fuzz tour bench-peers check docs clean distclean

# `make setup CUDA=1` for a machine with an NVIDIA GPU.
# Once installed, the other targets keep what is there.
installed := $(firstword $(file <.venv/passerelle-installed))
flavour := $(if $(filter-out 0,$(CUDA)),cuda,$(if $(CUDA),cpu,$(or $(installed),cpu)))
bin := .venv/bin
pytest := $(bin)/python -m pytest --quiet

help:  ## List these targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup:  ## Create .venv and install everything, pinned; once (CUDA=1 for an NVIDIA GPU)
	@requirements/install.sh $(flavour)

demo: setup  ## MovieLens-1M from raw ratings to recommendations, on this machine
	@exec $(bin)/python -m ray_cluster.demo

serve: setup  ## The same, and leave it serving until Ctrl-C
	@exec $(bin)/python -m ray_cluster.demo --keep-serving

# Three processes also on two cores: much of the time goes into waiting for Ray and Triton to start.
# Each computes on one thread: those of several processes would wait for each other at every operation.
# tests/support/worker_groups.py says which tests share a process.
test: setup  ## Tests, without the slow ones and those for a GPU; installs what they need where it may
	@requirements/system.sh
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(pytest) -n 3 --dist loadscope --no-loadscope-reorder -m "not slow and not gpu"

test-slow: setup  ## Tests that take more than half a minute each
	@requirements/system.sh
	@$(pytest) -m "slow and not gpu"

test-wheel: setup  ## The wheel in an empty environment, from raw logs to an answer; slow
	@$(pytest) -m slow tests/packaging

tour: setup  ## Execute docs/tour.ipynb into artifacts/tour.ipynb
	@mkdir -p artifacts
	@PASSERELLE_DATA=$${PASSERELLE_DATA:-$(abspath ../shared/data)} \
		$(bin)/jupyter-execute --output=../artifacts/tour.ipynb docs/tour.ipynb

test-gpu: setup  ## Tests that need a CUDA device
	@$(pytest) -m gpu

fuzz: setup  ## Ask the service whatever its OpenAPI description allows and forbids (Schemathesis); slow
	@test -e .venv-fuzz/installed || $(bin)/python -m venv --clear .venv-fuzz
	@test -e .venv-fuzz/installed || .venv-fuzz/bin/pip install --quiet --requirement requirements/fuzz.txt
	@touch .venv-fuzz/installed
	@exec $(bin)/python -m tests.support.fuzz_openapi $(abspath .venv-fuzz/bin/schemathesis) --seed 1 \
		--phases examples,coverage,fuzzing,stateful --max-examples 50 --continue-on-failure

bench-peers: setup  ## Epoch times beside RecTools, in an environment of its own; an hour on a quiet machine
	@test -e .venv-peers/installed || $(bin)/python -m venv --clear .venv-peers
	@test -e .venv-peers/installed || .venv-peers/bin/pip install --quiet --requirement requirements/peers.txt
	@touch .venv-peers/installed
	@exec $(bin)/python -m benchmarks.peers --peer-python .venv-peers/bin/python

check: setup  ## Format, lint, types, import directions, and whether generated docs are current
	@$(bin)/ruff format --check --quiet . || { echo "check: run .venv/bin/ruff format"; exit 1; }
	@$(bin)/ruff check --quiet .
	@$(bin)/mypy --no-error-summary
	@MYPYPATH=docs $(bin)/mypy --no-error-summary docs/*.py
	@report=$$($(bin)/lint-imports --no-logo) || { echo "$$report"; exit 1; }
	@$(bin)/python docs/generate_cli.py --check
	@$(bin)/python docs/generate_configuration.py --check
	@$(bin)/python docs/generate_results.py --check
	@echo "check: all clean"

docs: setup  ## Write docs/cli.md, docs/configuration.md and the README's results anew
	@$(bin)/python docs/generate_cli.py
	@$(bin)/python docs/generate_configuration.py
	@$(bin)/python docs/generate_results.py

clean:  ## Remove artifacts, published model versions and caches; .venv stays
	@rm -rf artifacts dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf model_repository/*/[0-9]* model_repository/published.json model_repository/events.sqlite*
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean  ## The same, and .venv
	@rm -rf .venv .venv-peers .venv-fuzz
