"""Benchmarks: `python -m tests.bench.NAME` prints a table, then one JSON object of figures as the last line."""
