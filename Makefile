# Every task of a user and a developer; `make` alone lists them. A virtual environment, .venv, is made where it is needed.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# CPU=1 installs PyTorch without CUDA, from its own index: a few hundred MB instead of 3 GB.
CPU ?=
ifneq ($(filter-out 0,$(CPU)),)
export PIP_EXTRA_INDEX_URL := https://download.pytorch.org/whl/cpu
endif
# Whatever imports ONNX Runtime: it sends nothing to its maker.
export ORT_DISABLE_TELEMETRY := 1
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet install
SERVICES := trainer,inference,dashboard,heic
# An environment of its own: there are two builds of ONNX Runtime, of which one can be installed.
GPU_VENV := .venvs/gpu
# Another, so that the bill of materials does not list the tools that make it.
RELEASE_VENV := .venvs/release

# For `make demo`: DATASET=my.zip trains on it instead of synthetic faces; ONCE=1 ends when all is done.
DATASET ?=
ONCE ?=
IMAGES ?=
EPOCHS ?=
# For `make test`: ALL=1 runs the slow tests too, as CI does.
ALL ?=
# More arguments: of `make test` for pytest, such as ARGS='-k broker'; of `make bench`, such as ARGS='--only packs'.
ARGS ?=

.PHONY: help
help: ## List these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 13

.PHONY: demo
demo: $(VENV)/.services ## Train, predict and show the results [CPU=1, without CUDA] [DATASET=my.zip] [IMAGES=n, else 1200] [EPOCHS=n, else as many as it takes] [ONCE=1]
	@$(BIN)/genderline demo $(if $(DATASET),--dataset '$(DATASET)') $(if $(IMAGES),--images '$(IMAGES)') \
		$(if $(EPOCHS),--epochs '$(EPOCHS)') $(if $(filter-out 0,$(ONCE)),--once)

.PHONY: run
run: $(VENV)/.services ## Start all services; Ctrl-C stops them
	@$(BIN)/genderline up

.PHONY: test
test: $(VENV)/.developer ## Run the tests, without the slow ones [ALL=1, with them] [ARGS='-k broker']
	@tests/system-packages.sh
	@PYTHON=$(BIN)/python ALL='$(filter-out 0,$(ALL))' tests/run.sh $(ARGS)

.PHONY: test-cluster
test-cluster: $(VENV)/.developer ## Run the tests that start a cluster of three RabbitMQ nodes: too much for `make test`
	@tests/system-packages.sh
	@$(BIN)/python -m pytest -m cluster $(ARGS)

.PHONY: check
check: $(VENV)/.developer ## Check style, types and import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: fuzz
fuzz: $(VENV)/.developer ## Feed mutated archives, images, tables and messages to their readers [MINUTES=5] [SEED=1]
	@$(BIN)/python -m tests.fuzz $(or $(MINUTES),5) $(or $(SEED),1)

.PHONY: soak
soak: $(VENV)/.developer ## Hurt services under load, and check that every promise was kept [MINUTES=3] [SEED=1] [BROKER=both] [ARGS=--write]
	@tests/system-packages.sh
	@$(BIN)/python -m tests.soak $(or $(MINUTES),3) $(or $(SEED),1) $(or $(BROKER),both) $(ARGS)

.PHONY: bench
bench: $(VENV)/.developer ## Measure ours against the bare loop [ARGS='--only packs --quick'] [ARGS=--write]
	@tests/system-packages.sh
	@$(BIN)/python -m tests.bench $(ARGS)

.PHONY: bench-peers
bench-peers: $(VENV)/.developer ## Measure ours beside mosec, LitServe, BentoML and Celery [ARGS='--quick'] [ARGS=--write]
	@tests/system-packages.sh
	@$(BIN)/python -m tests.bench.peers $(ARGS)

.PHONY: bench-gpu
bench-gpu: $(GPU_VENV)/.ready ## Measure what a GPU adds; needs an NVIDIA one [ARGS='--quick'] [ARGS=--write]
	@$(GPU_VENV)/bin/python -m tests.bench --gpu $(ARGS)

.PHONY: test-gpu
test-gpu: $(GPU_VENV)/.ready ## Run the tests that need a GPU; needs an NVIDIA one
	@$(GPU_VENV)/bin/python -c \
		'import sys, torch; sys.exit(None if torch.cuda.is_available() else "found no CUDA device, expected one")'
	@$(GPU_VENV)/bin/python -m pytest -m cuda $(ARGS)

.PHONY: bench-recipe
bench-recipe: $(VENV)/.developer ## Measure what each ingredient of the recipe is worth DATASET=faces.zip [ARGS='--seeds 1']
	@$(BIN)/python -m tests.bench.model.recipe '$(DATASET)' $(ARGS)

.PHONY: bench-runtimes
bench-runtimes: $(VENV)/.developer ## Measure the champion by precision and runtime, with and without the mirror image
	@$(BIN)/python -m tests.bench.model.runtimes

.PHONY: pretrain
pretrain: $(VENV)/.services ## Make the weights that training begins from anew DATASET=faces.zip ARGS='--source "…" [--held-out other.zip]'
	@$(BIN)/python -m trainer.pretrain '$(DATASET)' $(ARGS)

.PHONY: pictures
pictures: $(VENV)/.developer ## Take the README's pictures anew, of the demo and of every main page
	@tests/system-packages.sh
	@$(BIN)/python -m tests.terminal_picture docs/pictures/demo.svg
	@$(BIN)/python -m tests.pictures docs/pictures

.PHONY: reference
reference: $(VENV)/.developer ## Renew the tables of docs/reference.md from the code
	@$(BIN)/python -m tests.reference

# No index's name gets into the files: what they pin may come from any.
LOCK := $(RELEASE_VENV)/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
	--custom-compile-command 'make lock' pyproject.toml

.PHONY: lock
lock: $(RELEASE_VENV)/.ready ## Renew the lock files: every dependency with its hashes [ARGS=--upgrade]
	@$(LOCK) --extra trainer --extra inference --extra dashboard --extra s3 --extra heic --extra openvino -o requirements.lock $(ARGS) > /dev/null
	@$(LOCK) --extra inference-gpu --extra s3 --extra heic -o requirements-gpu.lock $(ARGS) > /dev/null

.PHONY: sbom
sbom: $(VENV)/.services $(RELEASE_VENV)/.ready ## Write build/sbom.cdx.json: what is installed in .venv, with its licenses
	@mkdir -p build
	@$(RELEASE_VENV)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.cdx.json
	@echo build/sbom.cdx.json

.PHONY: up
up: ## Start everything in containers, with RabbitMQ and Prometheus (needs Docker)
	@GENDERLINE_COMMIT=$$(git rev-parse HEAD 2> /dev/null || true) docker compose up --build --detach

.PHONY: down
down: ## Stop the containers; their data stays
	@docker compose --profile '*' down

.PHONY: clean
clean: ## Remove the virtual environment and every cache, but no data
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage* build *.egg-info
	@find . -name __pycache__ -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "found $$($(PYTHON) --version 2>&1), expected Python 3.11 or newer; name one with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || tests/system-packages.sh python3-venv
	@$(PYTHON) -m venv $(VENV)

# Made anew, that is installed again, whenever the dependencies change.
$(VENV)/.services: pyproject.toml | $(BIN)/python
	@echo "installing the services into $(VENV): PyTorch alone is several GB, so this takes some minutes the first time"
	@$(PIP) --editable '.[$(SERVICES)]'
	@touch $@

$(VENV)/.developer: $(VENV)/.services
	@echo "installing what the tests need into $(VENV)"
	@$(PIP) --editable '.[$(SERVICES),test]'
	@touch $@

$(RELEASE_VENV)/.ready: pyproject.toml
	@$(PYTHON) -m venv $(RELEASE_VENV)
	@$(RELEASE_VENV)/bin/python -m pip --disable-pip-version-check --quiet --quiet install \
		$$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["release"])')
	@touch $@

$(GPU_VENV)/.ready: pyproject.toml
	@echo "installing what a GPU needs into $(GPU_VENV): several GB, so this takes some minutes the first time"
	@$(MAKE) VENV=$(GPU_VENV) $(GPU_VENV)/.developer
	@$(GPU_VENV)/bin/python -m pip uninstall --quiet --yes onnxruntime
	@$(GPU_VENV)/bin/python -m pip --disable-pip-version-check --quiet --quiet install '.[inference-gpu]'
	@touch $@
