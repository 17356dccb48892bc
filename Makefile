# One word for each thing people do. Every target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FAST := not slow and not chaos and not nights and not ray and not browser

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-chaos test-nights test-ray test-browser test-javascript coverage docs check lint types fmt lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Create .venv with everything pinned

# torch first: from then on nothing that needs it fetches another build.
.venv/ready: requirements.lock pyproject.toml serving/clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(PIP) --no-deps --editable . --editable serving/clients/python
	touch $@

demo: setup ## Simulate a shop, run the night, serve it, click three times
	$(BIN)/shelfwise demo

test: setup ## Run the fast tests
	$(BIN)/python -m pytest -m "$(FAST)" -n 2 --dist loadfile

test-slow: setup ## Run what takes minutes: benchmarks at small sizes, whole commands, real data
	$(BIN)/python -m pytest -m "slow and not chaos and not nights and not ray and not browser"

# Within twenty minutes, or something hangs.
test-nights: setup ## Run nights killed at every step, and on poisoned data
	timeout 1200 $(BIN)/python -m pytest -m nights

.venv/ray: .venv/ready requirements-ray.lock
	$(PIP) --no-deps --require-hashes -r requirements-ray.lock
	touch $@

# Threads of one process would wait for those of the others.
test-ray: setup .venv/ray ## Run a night on a Ray cluster of several node processes, one of them killed
	OMP_NUM_THREADS=1 timeout 1200 $(BIN)/python -m pytest -m ray

# One at a time: they watch the clock.
test-chaos: setup ## Run with Redis killed, paused, cut off, full or emptied under load
	$(BIN)/python -m pytest -m chaos

test-browser: setup ## Run the pages in a headless Chromium; skipped, and said so, where there is none
	$(BIN)/python -m pytest -m browser

test-javascript: ## Run the JavaScript client's tests and types; skipped, and said so, where there is no npm
	@if command -v npm > /dev/null; then cd serving/clients/javascript && \
	npm install --no-package-lock --no-audit --no-fund --silent && npm test && npm run types; \
	else echo "skipped: no npm on this machine (apt-get install npm)"; fi

coverage: setup ## Run the fast tests and report which lines they reach
	$(BIN)/python -m pytest -m "$(FAST)" -n 2 --dist loadfile --cov --cov-report term:skip-covered --cov-report html:build/coverage

# Nothing is fetched; a link that leads nowhere is an error.
docs: setup ## Build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint types ## Lint and check types

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

fmt: setup ## Format the code, and fix what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without torch and what it alone needs: which build of it is right depends on the machine.
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11.5 --override build/no-torch.txt --no-header --no-annotate
lock: setup ## Write the lock files, with hashes, from pyproject.toml
	$(PIP) uv
	mkdir -p build && echo 'torch; python_version < "3"' > build/no-torch.txt
	$(LOCK) --extra train --extra embedded --extra docs --extra dev --output-file requirements.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --output-file requirements-serve.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --extra train --extra embedded --output-file requirements-train.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --extra ray --output-file requirements-ray.lock pyproject.toml

clean: ## Remove the environment and what was built
	rm -rf .venv build dist *.egg-info
