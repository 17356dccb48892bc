# One word for each thing people do. Every target sets up what it needs.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-slow test-chaos test-nights test-ray test-browser test-javascript docs check lint types clean

setup: .venv/ready

# torch first: from then on nothing that needs it fetches another build.
.venv/ready: requirements.lock pyproject.toml serving/clients/python/pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . --editable serving/clients/python
	touch $@

# Simulate a shop, run the night, serve it, click three times.
demo: setup
	$(BIN)/shelfwise demo

test: setup
	$(BIN)/python -m pytest -m "not slow and not chaos and not nights and not ray and not browser" -n 2 --dist loadfile

test-slow: setup
	$(BIN)/python -m pytest -m "slow and not chaos and not nights and not ray and not browser"

# Nights killed at every step, and poisoned; within twenty minutes, or something hangs.
test-nights: setup
	timeout 1200 $(BIN)/python -m pytest -m nights

# What `--engine ray` needs beyond the rest.
.venv/ray: .venv/ready requirements-ray.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-ray.lock
	touch $@

# A night on a Ray cluster of several node processes, one of them killed. Threads of one would wait for the others.
test-ray: setup .venv/ray
	OMP_NUM_THREADS=1 timeout 1200 $(BIN)/python -m pytest -m ray

# Redis killed, paused, cut off, full, emptied, under load. One at a time: they watch the clock.
test-chaos: setup
	$(BIN)/python -m pytest -m chaos

# The storefront page in a headless Chromium; skipped, and said so, where there is none.
test-browser: setup
	$(BIN)/python -m pytest -m browser

# The JavaScript client: its tests in node, and its types by tsc; skipped, and said so, where there is no npm.
test-javascript:
	@if command -v npm > /dev/null; then cd serving/clients/javascript && \
	npm install --no-package-lock --no-audit --no-fund --silent && npm test && npm run types; \
	else echo "skipped: no npm on this machine (apt-get install npm)"; fi

# The pages to read, as a site in build/site; a link that leads nowhere ends it. Nothing is fetched.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint types

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

clean:
	rm -rf .venv build dist *.egg-info
