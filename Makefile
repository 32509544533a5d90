# Every target sets up what it needs by itself: a virtual environment in .venv, from pyproject.toml under constraints.txt.
# Needed beforehand: make, Python 3.11 or newer, and for a broker Docker, or a JDK 17 or newer with Maven, or LAPSE_KAFKA.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PROXIES := $(VENV)/.proxies
SEEDS ?= 1000
FIRST ?= 0
# Seconds the demo runs; benchmarks to run (all without); paths or options for the tests.
SECONDS_OF_DEMO ?= 60
ONLY ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-proxies check simulate bench faults broker test-containers constraints clean

help: ## Show the targets.
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: $(READY) ## Install Lapse and its tools into .venv.

# Made anew only when what is installed changes, so every other run of any target costs nothing.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another one: make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# The proxies are large (340 MB), and only tests need them.
$(PROXIES): $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,proxies]'
	@touch $@

demo: $(READY) ## Watch services, broker and processor end sessions for a minute.
	$(BIN)/lapse demo --seconds $(SECONDS_OF_DEMO)

test: $(PROXIES) ## Run all tests, with a real broker and real proxies.
	$(BIN)/python -m pytest $(ARGS)

test-proxies: $(PROXIES) ## Prove the sidecar behind each proxy at length (nginx is the system's).
	$(BIN)/python -m pytest tests/proxies -m "proxies or not proxies" $(ARGS)

check: $(READY) ## Hold style, types and import arrows.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

faults: $(READY) ## Break brokers and workers at length (ARGS="-k kill" for some of it).
	$(BIN)/python -m pytest tests/faults -m "faults or not faults" $(ARGS)

simulate: $(READY) ## Break simulated estates under SEEDS=n seeds, from FIRST on.
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) --first $(FIRST) $(ARGS)

bench: $(READY) ## Measure; ONLY=processor for one.
	$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

broker: $(READY) ## Start a broker on this machine (lapse broker down ends it).
	$(BIN)/lapse broker up

test-containers: $(READY) ## Prove the Docker path on a real engine, with an image built here.
	infra/kafka/test-containers.sh $(BIN)/python

constraints: $(READY) ## Resolve constraints.txt anew (needs uv).
	uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-emit-index-url \
	  --output-file constraints.txt pyproject.toml

clean: ## Remove .venv and what was made, not the broker's data.
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
