"""The README matches the repository. `tests/project/test_docs.py` runs its commands."""

from __future__ import annotations

import re

from offline.config.configuration import load
from tests import ROOT

README = (ROOT / "README.md").read_text("utf-8")
FIRST = README.split("```sh\n", 1)[1].split("```")[0]


def test_the_first_screen_names_make_targets_that_exist() -> None:
    """`make demo` and `make test` are targets of the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = re.findall(r"^make (\S+)", FIRST, re.MULTILINE)
    assert named == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in named)


def test_files_named_in_the_tree_exist() -> None:
    """The project layout lists existing packages and files, and every subpackage of offline and serving."""
    tree = README.split("## Project layout")[1].split("```")[1]
    package, subpackages = "", set()
    for line in tree.splitlines():
        if found := re.match(r"(\w+)/", line):
            package = found[1]
            assert (ROOT / package).is_dir(), package
        for name in re.findall(r"\b(\w+(?:\.py|/))(?=\s)", line.removeprefix(f"{package}/")):
            assert (ROOT / package / name).exists(), f"{package}/{name}"
            subpackages.add(f"{package}/{name}")
    for package in ("offline", "serving"):
        assert {f"{package}/{p.parent.name}/" for p in (ROOT / package).glob("*/__init__.py")} <= subpackages


def test_the_mapping_of_the_example_is_a_configuration() -> None:
    """It maps the three columns that every log needs."""
    config = load(ROOT / "docs/examples/online_retail.yaml")
    assert config.sources is not None
    assert {"user_id", "item_id", "timestamp"} <= set(config.sources.events[0].columns)
