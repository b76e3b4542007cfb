# `make help` is the front door.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1
export RAY_USAGE_STATS_ENABLED := 0

.PHONY: help venv demo test lint test-faults test-network test-containers bench clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

$(VENV)/.installed: pyproject.toml docker/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("fedspeech needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -c docker/constraints.txt -e '.[synthetic,dev]'
	@touch $@

venv: $(VENV)/.installed ## A virtual environment in .venv with everything installed

demo: venv ## Synthesize a small corpus, train, personalize 16 speakers on Ray, write runs/demo/report.html
	$(BIN)/fedspeech demo

lint: venv ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: venv lint ## All tests, in two processes (some twenty minutes on 2 cores)
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 40

test-faults: venv ## Every fault, at random moments, and all other tests that take long
	FEDSPEECH_FAULTS=all $(BIN)/pytest -m "faults or slow"

test-network: venv ## Boxes behind weak links, in network namespaces (as root, with iproute2 and nginx)
	FEDSPEECH_NETWORK=1 $(BIN)/pytest -m network

test-containers: venv ## Build the images of docker/ and run them, with podman or docker; BASE=an image of Debian 12
	FEDSPEECH_CONTAINERS=1 BASE="$(BASE)" BUILD_OPTIONS="$(BUILD_OPTIONS)" $(BIN)/pytest -m containers

bench: venv ## Beside plain loops, Flower and Apple's pfl: experiments/benchmarks (some three hours on 2 cores)
	-$(BIN)/python -m pip install --quiet --no-deps -r experiments/benchmarks/requirements.txt
	$(BIN)/python -m experiments.benchmarks

clean: ## Remove the environment and the runs
	rm -rf $(VENV) runs
