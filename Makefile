# A checkout's commands; `make help` lists them. tools/setup-venv makes .venv.
# Variables: PYTHON=... (which interpreter), ARGS='...' (options for run, test and bench),
# BENCH=... (which benchmark), VENV=... (which virtual environment, if not .venv).

VENV ?= .venv
BIN = $(VENV)/bin
SETUP_INPUTS := pyproject.toml requirements-bootstrap.txt tools/setup-venv

COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes \
	--no-header --no-emit-index-url --no-emit-find-links

ifdef PYTHON
$(if $(shell command -v '$(PYTHON)' 2>/dev/null),,$(error PYTHON=$(PYTHON): there is no such program))
endif
export PYTHON VENV
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test torture test-oldest lint audit format bench package requirements clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-13s %s\n", $$1, $$2}' Makefile

run: $(VENV)/.runtime ## Start the proxy in the foreground, with ./proxy.yaml
	$(BIN)/clamproxy run $(ARGS)

PYTEST = $(BIN)/pytest --numprocesses=6 --dist=loadfile --no-loadscope-reorder $(ARGS)

test: $(VENV)/.dev ## Run the tests
	$(PYTEST)

torture: $(VENV)/.dev ## Try to break it for an hour: kills, faults, attacks, simulated time; see SECURITY.md
	CLAMPROXY_TORTURE=full $(BIN)/pytest --numprocesses=2 --dist=load --timeout=5400 tests/torture $(ARGS)

test-oldest: override VENV := .venv-oldest
test-oldest: .venv-oldest/.oldest ## Run them with the oldest supported mitmproxy; see requirements-oldest.txt
	$(PYTEST)

lint: $(VENV)/.dev ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict

audit: $(VENV)/.dev ## Ask whether a pinned dependency has a known vulnerability
	$(BIN)/python tools/audit.py $(ARGS)

format: $(VENV)/.dev ## Rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: BENCH ?= peers
bench: $(VENV)/.dev ## Run a benchmark: BENCH=peers, releases, cld, gateways or workers
	$(BIN)/python -m benchmarks.$(BENCH) $(ARGS)

# The wheel is built from the sdist, and nothing is fetched. It contains ./proxy.yaml, which must be unchanged.
package: $(VENV)/.dev ## Build the wheel and the sdist in dist/
	rm -rf man
	$(BIN)/clamproxy man --into man
	$(BIN)/uv build --quiet --no-build-isolation --offline --python $(BIN)/python --out-dir dist

# Earlier pins are kept where they still fit; ARGS=--upgrade moves them.
requirements: $(VENV)/.dev ## Compile the requirements files again
	$(COMPILE) $(ARGS) --group build --extra fleet pyproject.toml -o requirements.txt
	$(COMPILE) $(ARGS) --group dev pyproject.toml -c requirements.txt -o requirements-dev.txt
	$(COMPILE) $(ARGS) --group bootstrap -c requirements-dev.txt -o requirements-bootstrap.txt
	cp requirements-dev.txt $(VENV)/oldest.txt
	echo 'mitmproxy<12.3' | $(COMPILE) --upgrade-package mitmproxy --group dev pyproject.toml -c - -o $(VENV)/oldest.txt
	awk 'NR == FNR {pinned[$$0]; next} /^[^ ]/ {differs = !($$0 in pinned)} differs' \
		requirements-dev.txt $(VENV)/oldest.txt >requirements-oldest.txt

clean: ## Remove .venv and what the tools leave behind; the cache stays
	rm -rf $(VENV) .venv-oldest build dist man *.egg-info .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps inside .venv: they go when it goes, and a second set-up costs nothing.
$(VENV)/.runtime: requirements.txt $(SETUP_INPUTS)
	@tools/setup-venv requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt requirements.txt $(SETUP_INPUTS)
	@tools/setup-venv requirements-dev.txt
	@touch $@ $(VENV)/.runtime

.venv-oldest/.oldest: requirements-oldest.txt requirements-dev.txt requirements.txt $(SETUP_INPUTS)
	@tools/setup-venv requirements-dev.txt requirements-oldest.txt
	@touch $@
