# One target per task. Every target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
FAST := not slow and not chaos and not nights and not ray and not browser
# The files with tests of a marker: collecting all others takes half a minute. The folders with the tests that take longest
# come first: a worker that began one of them last would leave the other one without work.
marked = --no-loadscope-reorder $$(grep -rlE "mark\.$(1)\b" tests/project tests/serving tests/offline tests/[frt]* --include="*.py")

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-chaos test-nights test-ray test-browser test-javascript coverage docs reference check lint types fmt lock sbom audit audit-now clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## Create .venv with all pinned dependencies

# torch first, so that no later package installs another build of it.
.venv/ready: requirements.lock pyproject.toml serving/clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) --no-deps --require-hashes -r requirements.lock
	$(PIP) --no-deps --editable . --editable serving/clients/python
	touch $@

demo: setup ## Simulate a shop, train a release, serve it, and send three clicks
	$(BIN)/shelfwise demo

# One thread per process, so that the threads of one do not wait for those of the others: two workers run tests on two
# cores. Computations of small matrices took three times as long with two threads each.
test test-slow test-nights test-ray: export OMP_NUM_THREADS = 1

test: setup ## Run the fast tests
	$(BIN)/python -m pytest -m "$(FAST)" -n 2 --dist loadfile

test-slow: setup ## Run the slow tests: benchmarks at small sizes, complete commands, real data
	$(BIN)/python -m pytest -m "slow and not chaos and not nights and not ray and not browser" -n 2 --dist loadfile $(call marked,slow)

# The timeout ends tests that hang.
test-nights: setup ## Test nightly runs killed at every step, and with corrupt data
	timeout 1500 $(BIN)/python -m pytest -m nights -n 2 --dist loadfile $(call marked,nights)

.venv/ray: .venv/ready requirements-ray.lock
	$(PIP) --no-deps --require-hashes -r requirements-ray.lock
	touch $@

# Ray ends a process that is connected to it, without an exception, if its head node does not answer. This was seen once,
# in a test, and not again in 30 kills of a node. pytest then writes no report: only in this case, the logs of Ray are
# shown and the tests run again.
test-ray: setup .venv/ray ## Test a nightly run on a Ray cluster of several node processes, one of which is killed
	@rm -f build/ray.xml
	timeout 900 $(BIN)/python -m pytest -m ray --junit-xml build/ray.xml $(call marked,ray) || { test ! -e build/ray.xml && \
	tail -n 20 /tmp/ray/session_latest/logs/python-core-driver-*.log /tmp/ray/session_latest/logs/gcs_server.*; \
	test ! -e build/ray.xml && timeout 900 $(BIN)/python -m pytest -m ray $(call marked,ray); }

# Not in parallel, because these tests depend on timing.
test-chaos: setup ## Test the service with Redis killed, paused, cut off, full or emptied under load
	$(BIN)/python -m pytest -m chaos $(call marked,chaos)

test-browser: setup ## Test the pages in headless Chromium; skipped with a message if it is not installed
	$(BIN)/python -m pytest -m browser -n 2 --dist loadfile $(call marked,browser)

test-javascript: ## Test the JavaScript client and check its types; skipped with a message if npm is not installed
	@if command -v npm > /dev/null; then cd serving/clients/javascript && \
	npm install --no-package-lock --no-audit --no-fund --silent && npm test && npm run types; \
	else echo "skipped: no npm on this machine (apt-get install npm)"; fi

coverage: setup ## Run the fast tests and report line coverage
	$(BIN)/python -m pytest -m "$(FAST)" -n 2 --dist loadfile --cov --cov-report term:skip-covered --cov-report html:build/coverage

# Needs no network. A broken link is an error.
docs: setup ## Build the documentation site in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

reference: setup ## Write docs/configuration.md from the models of the configuration
	mkdir -p build && $(BIN)/python -m offline.config.reference > build/configuration.md && mv build/configuration.md docs/configuration.md

check: lint types ## Lint and check types

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

fmt: setup ## Format the code and apply the fixes of the linter
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without torch and the packages that only torch needs: the right build of torch depends on the machine.
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --python-version 3.11.5 --override build/no-torch.txt --no-header --no-annotate
lock: setup ## Write the lock files, with hashes, from pyproject.toml
	$(PIP) uv
	mkdir -p build && echo 'torch; python_version < "3"' > build/no-torch.txt
	$(LOCK) --extra train --extra embedded --extra multilingual --extra docs --extra dev --output-file requirements.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --output-file requirements-serve.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --extra train --extra embedded --extra multilingual --output-file requirements-train.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --extra ray --output-file requirements-ray.lock pyproject.toml
	$(LOCK) --constraint requirements.lock --group audit --output-file requirements-audit.lock

build/audit/ready: requirements-audit.lock
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	touch $@

# torch is not in the lock files.
TORCH = sed -n 's/^ARG TORCH=//p' deploy/Dockerfile
SBOM := build/audit/bin/cyclonedx-py requirements --output-format JSON --output-file
sbom: build/audit/ready ## List the packages of both images in build/sbom, as CycloneDX
	mkdir -p build/sbom
	$(SBOM) build/sbom/serve.json requirements-serve.lock
	$(TORCH) | cat requirements-train.lock - | $(SBOM) build/sbom/train.json -

AUDIT := build/audit/bin/pip-audit --vulnerability-service osv --strict --disable-pip --progress-spinner off
audit: ## Check the locked packages for known vulnerabilities; skipped, and said so, where the database is unreachable
	@if $(PYTHON) -c "import urllib.request as u; u.urlopen('https://api.osv.dev/v1/vulns/PYSEC-2018-28', timeout=10)" 2> /dev/null; \
	then $(MAKE) --no-print-directory audit-now; \
	else echo "skipped: the OSV database of vulnerabilities cannot be reached from this machine"; fi

# requirements-serve.lock and requirements-train.lock are parts of requirements.lock.
audit-now: build/audit/ready
	for lock in requirements requirements-ray requirements-audit; do $(AUDIT) --require-hashes -r $$lock.lock || exit 1; done
	$(TORCH) > build/torch.txt && $(AUDIT) --no-deps -r build/torch.txt

clean: ## Remove .venv and build outputs
	rm -rf .venv build dist *.egg-info
