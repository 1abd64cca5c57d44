# Every target works from a fresh clone; `make help` lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROTOS := $(notdir $(wildcard proto/*.proto))
SEED ?= 1
SCHEDULES ?= 5000
MODE ?= all
NODES ?= 4
SECONDS ?= 600
NETWORK ?= auto
JOBS ?= 2
# How many times longer than `make sim` is `make sim-long`.
N ?= 20
TARGET ?= all
MINUTES ?= 15

.PHONY: help install proto proto-check configuration format check test fuzz sim sim-long mutants chaos demo docs bench detector compose-test clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /|/' | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## make .venv with everything in it (CPU torch unless there is an NVIDIA GPU)

$(VENV)/.installed: pyproject.toml constraints.txt scripts/install.sh
	PYTHON=$(PYTHON) sh scripts/install.sh $(VENV)
	touch $@

proto: install ## regenerate the committed protobuf stubs
	PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I shoal/proto=proto --python_out=src \
	    --grpc_python_out=src --mypy_out=src --mypy_grpc_out=src $(addprefix shoal/proto/,$(PROTOS))

proto-check: install ## fail when the stubs are not what the .proto files say
	PYTHON=$(BIN)/python sh scripts/proto_check.sh

configuration: install ## write docs/configuration.md from the settings
	$(BIN)/python -m shoal.node.config_page > docs/configuration.md

format: install ## rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: install proto-check ## lint, format, types, tidy, stub freshness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_tidy.py

test: install ## the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadgroup

fuzz: install ## fuzz one target, coverage-guided: make fuzz TARGET=link MINUTES=15 (TARGET=all: each)
	$(BIN)/python -c 'import atheris' 2>/dev/null || \
	    $(BIN)/python -m pip --disable-pip-version-check install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.fuzz $(TARGET) --minutes $(MINUTES)

sim: install ## simulate consensus clusters: make sim SEED=7 SCHEDULES=1000 MODE=heal|core|slow|all JOBS=2
	$(BIN)/python -m tests.simulation --seed $(SEED) --schedules $(SCHEDULES) --mode $(MODE) \
	    --jobs $(JOBS)

sim-long: install ## the same, N times as many schedules: make sim-long N=20
	$(BIN)/python -m tests.simulation --seed $(SEED) --schedules $$(($(SCHEDULES) * $(N))) \
	    --mode $(MODE) --jobs $(JOBS) --shrink

mutants: install ## put planted bugs into consensus/ one by one; fails if the simulator misses one
	$(BIN)/python -m tests.simulation.mutants --jobs $(JOBS)

chaos: install ## real nodes under real faults, then an audit: make chaos NODES=4 SECONDS=600 SEED=1
	$(BIN)/python -m tests.chaos --nodes $(NODES) --seconds $(SECONDS) --seed $(SEED) --network $(NETWORK)

demo: install ## four nodes on this machine train one model; KEEP=1 leaves them running
	$(BIN)/shoal demo --directory runs/demo $(if $(KEEP),--keep)

docs: install ## the documentation as a site, in site/; fails on a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

bench: install ## the benchmarks, as JSON lines
	$(BIN)/python -m benchmarks.codec
	$(BIN)/python -m benchmarks.transport
	$(BIN)/python -m benchmarks.consensus

detector: install ## how soon the dead are noticed: simulated, then four real processes (about 12 minutes)
	$(BIN)/python -m benchmarks.detector deaths
	$(BIN)/python -m benchmarks.detector troubles
	$(BIN)/python -m benchmarks.detector real --stall-seconds 300

compose-test: ## the same mesh in containers, for real (skips loudly where no engine can start)
	python3 scripts/compose_test.py

clean: ## remove what was made here, except the virtual environment
	rm -rf runs site build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
