"""The pages to read are true: each code block does what it shows. The site has `tests/project/test_site.py`.

What each language of a block is held to stands in `tests/blocks.py`.
"""

from __future__ import annotations

import json
import re
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from offline.config.configuration import load
from serving.release.manifest import MANIFEST
from tests import invoices
from tests.blocks import LANGUAGES, PAGES, ROOT, Block, Desk, blocks, send

BLOCKS = [b for path in PAGES for b in blocks(path)]
FROM_NOTHING = ("README.md", "docs/quickstart.md")
"""Pages that begin in an empty directory; the others in one where a night of a simulated shop is over."""

QUICK = "encoder: {max_tokens: 16, refreshes: 0, epochs: 2}\nranker: {trees: 15, min_data_in_leaf: 20}\n"

NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "make demo"): "sets up and tests everything: what CI does; its targets are looked for here",
    ("docs/quickstart.md", "make setup"): "is done before any test can run",
    (
        "docs/serving.md",
        "shelfwise collect",
    ): "needs a day of visitors; tests/offline/data/test_collection.py and test_skew.py have one",
    ("docs/clients.md", "pip install"): "has been installed by `make setup`",
    ("docs/nights.md", "shelfwise releases rollback"): "needs two releases; tests/serving/test_releases.py has them",
    (
        "docs/nights.md",
        "shelfwise releases shadow",
    ): "needs releases and visitors; tests/serving/test_shadow.py has both",
    ("docs/scale.md", "pip install"): "needs several machines; tests marked `ray` have several nodes on one",
    ("docs/operations.md", "mkdir -m 700"): "needs Docker; tests/project/test_deploy.py checks what it starts",
    ("docs/operations.md", "install -m 644"): "needs systemd; tests/project/test_deploy.py checks the units",
    ("docs/metarank.md", '{"event": "interaction", "id": "e9"'): "is Metarank's, for comparison",
    ("docs/metarank.md", '{"id": "r2"'): "is Metarank's, for comparison",
    ("docs/metarank.md", "state:"): "is Metarank's, for comparison",
}
"""Blocks that are read and not run, by page and beginning, and why."""

SAYS = {
    "README.md": [
        "ranker",
        "live",
        '"degraded":false',
        '"accepted":1',
        '"reasons":[{',
        '"sources":["',
        '"removed":[{"rule":"rules.filter"',
    ],
    "docs/quickstart.md": [
        "timezone: UTC",
        "accepted",
        "ndcg@10 on",
        "For 13085 (",
        '"accepted":1',
        '"degraded":false',
        '"because"',
    ],
    "docs/features.md": ["own"],
    "docs/nights.md": ["live:", "unpin"],
}
"""What the blocks of a page print, among other things."""


def reason_not_run(block: Block) -> str | None:
    return next(
        (why for (page, begin), why in NOT_RUN.items() if block.page == page and block.text.startswith(begin)), None
    )


RUN = sorted(
    {
        b.page
        for b in BLOCKS
        if not reason_not_run(b) and (b.language in ("sh", "python") or (b.language == "json" and b.title))
    }
)


def test_every_block_says_what_it_is() -> None:
    """A language for each fence; output is `text`. Fences inside lists count as well."""
    assert [str(b) for b in BLOCKS if b.language not in LANGUAGES] == []
    fences = sum(len(re.findall(r"^[ \t]*```", path.read_text("utf-8"), re.MULTILINE)) for path in PAGES)
    assert fences == 2 * len(BLOCKS), "a fence is not closed, or stands where it is not seen"


def test_blocks_that_are_not_run_are_few_and_still_there() -> None:
    """Twelve, each with its reason; one that is gone from its page is to go from the list."""
    gone = [key for key in NOT_RUN if not any(b.page == key[0] and b.text.startswith(key[1]) for b in BLOCKS)]
    assert gone == []
    assert len([b for b in BLOCKS if b.language != "text" and reason_not_run(b)]) == 12


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_yaml_block_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """Every key is known and every value possible; what is another program's is YAML at least."""
    (tmp_path / "block.yaml").write_text(block.text, "utf-8")
    assert yaml.safe_load(block.text)
    if not reason_not_run(block):
        load(tmp_path / "block.yaml")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_a_json_block_is_json_and_names_its_call_or_file(block: Block) -> None:
    """A body names the call it is for, lines the file they are; without a title it is somebody else's."""
    if block.title.endswith(".jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
        return
    assert isinstance(json.loads(block.text), dict)
    assert reason_not_run(block) or re.fullmatch(r"(POST|PUT) /v1/\w+", block.title), str(block)


def test_messages_that_the_quickstart_explains_are_said_somewhere() -> None:
    """What stands in backticks in the first column of its table of messages is in our source, `...` aside."""
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8").split("## If something is said")[1]
    said = [m for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)]
    source = "".join(
        p.read_text("utf-8")
        for room in ("offline", "serving", "text_encoder", "ranker")
        for p in (ROOT / room).rglob("*.py")
    )
    whole = re.sub(r'"\s*\n\s*f?"', "", source)
    parts = [part.strip() for message in said for part in message.split("...")]
    missing = [p for p in parts if p not in whole and p.replace("item_id", "{lacking[0]}") not in whole]
    assert len(said) >= 8
    assert missing == []


# --- running them ---


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a simulated shop's night, published; to be copied, not written to."""
    directory = tmp_path_factory.mktemp("shop")
    Desk(directory, QUICK).shell("shelfwise simulate --items 80 --users 250 --days 14 --seed 3\nshelfwise nightly")
    return directory / "workspace"


@pytest.fixture
def desk(shop: Path, tmp_path: Path) -> Desk:
    """A terminal in a directory of its own, with a copy of the shop whose release is live there."""
    shutil.copytree(shop, tmp_path / "workspace", ignore=shutil.ignore_patterns("redis", "lock"))
    release = next(p.name for p in (shop / "releases").iterdir() if (p / MANIFEST).is_file())
    found = Desk(tmp_path, QUICK, ID=release)
    found.shell(f"shelfwise releases promote {release}")
    return found


def run_page(desk: Desk, page: str) -> str:
    """What a page's blocks print, run one after the other."""
    said = []
    with ExitStack() as held:
        address = None
        for block in [b for b in BLOCKS if b.page == page]:
            if reason_not_run(block) or block.language in ("text", "html"):
                continue
            if re.fullmatch(r"[\w.-]+\.(py|yaml|jsonl)", block.title):
                (desk.directory / block.title).write_text(block.text, "utf-8")
                continue
            if "shelfwise serve" in block.text:
                held.close()  # it starts one of its own
                address = None
            elif address is None and (block.language == "json" or "localhost:8000" in block.text):
                address = held.enter_context(desk.service())
            try:
                if block.language == "json":
                    assert send(str(address), block.title, block.text) in (200, 202)
                elif block.language == "sh":
                    said.append(desk.shell(block.text))
                elif block.language == "python":
                    said.append(desk.python(block.text))
            except Exception as error:
                raise AssertionError(f"{block}: {error}") from error
    return "\n".join(said)


def expect(page: str, said: str) -> None:
    missing = [words for words in SAYS.get(page, []) if words not in said]
    assert missing == [], f"{page} printed\n{said}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in RUN if p not in FROM_NOTHING])
def test_the_blocks_of_a_page_run_in_order(page: str, desk: Desk) -> None:
    """Commands succeed, programs end well, bodies are accepted by the service."""
    expect(page, run_page(desk, page))


@pytest.mark.slow
def test_the_readme_runs_from_an_empty_directory(tmp_path: Path) -> None:
    """Simulate, night, rank, similar, releases; then serve and its calls: each succeeds and says what it should."""
    said = run_page(Desk(tmp_path), "README.md")
    expect("README.md", said)
    assert said.count('"degraded":false') >= 2


@pytest.mark.slow
def test_the_quickstart_leads_from_a_csv_to_a_ranked_list(tmp_path: Path) -> None:
    """On an export made up with the same columns and dirt, by the page's own commands and nothing else."""
    invoices.write(tmp_path / "raw_2009_2010.csv.gz")
    expect("docs/quickstart.md", run_page(Desk(tmp_path), "docs/quickstart.md"))


RAW = ROOT.parent / "shared" / "data" / "online_retail" / "raw_2009_2010.csv.gz"


@pytest.mark.slow
@pytest.mark.skipif(not RAW.is_file(), reason="the real data of ../shared/data is not here")
def test_the_quickstart_holds_on_the_real_export(tmp_path: Path) -> None:
    """The same page on half a million real lines; only the night is made shorter than the page's."""
    (tmp_path / "raw_2009_2010.csv.gz").symlink_to(RAW)
    quick = "encoder: {mode: frozen, max_tokens: 16}\nlists: {most: 600}\nranker: {trees: 60, refit: false}\n"
    expect("docs/quickstart.md", run_page(Desk(tmp_path, quick), "docs/quickstart.md"))
