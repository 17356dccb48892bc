"""The offline pipeline: builds a release, evaluates it and decides whether to publish it."""
