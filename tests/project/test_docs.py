"""The pages of README and docs are correct: each code block does what it shows.

How each language is tested is described in `tests/blocks.py`. `tests/project/test_site.py` tests the site.
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
from tests import ROOT, invoices
from tests.blocks import LANGUAGES, PAGES, Block, Terminal, blocks, send
from tests.shop_exports import SYSTEMS, read_shop

BLOCKS = [b for path in PAGES for b in blocks(path)]
FROM_NOTHING = ("README.md", "docs/quickstart.md", "docs/first-experiment.md")
"""Pages that start in an empty directory; the others start after a nightly run of a simulated shop."""

SHOPS = {
    "docs/shops/shopify.md": "shopify",
    "docs/shops/woocommerce.md": "woocommerce",
    "docs/shops/ga4.md": "ga4",
    "docs/shops/olist.md": "olist",
    "docs/shops/own_tables.md": "chinese",
}
"""Pages that start in a directory with the export of a shop, and the layout of the export."""

QUICK = "encoder: {max_tokens: 16, refreshes: 0, epochs: 2}\nranker: {trees: 15, min_data_in_leaf: 20}\n"

NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "make demo"): "sets up and tests everything, as CI does; test_readme.py checks the targets",
    ("docs/quickstart.md", "make setup"): "runs before any test can run",
    (
        "docs/serving.md",
        "shelfwise collect",
    ): "needs a day of visitors; tested in tests/offline/data/test_collection.py and test_skew.py",
    (
        "docs/data.md",
        "title: Example shop system",
    ): "is a preset; tests/offline/ingest/test_presets.py loads all presets",
    ("docs/clients.md", "pip install"): "is installed by `make setup`",
    ("docs/nights.md", "shelfwise releases rollback"): "needs two releases; tested in tests/serving/test_releases.py",
    (
        "docs/nights.md",
        "shelfwise releases shadow",
    ): "needs releases and visitors; tested in tests/serving/test_shadow.py",
    ("docs/scale.md", "pip install"): "needs several machines; tests marked `ray` use several nodes on one",
    ("docs/operations.md", "mkdir -m 700"): "needs Docker; tests/project/test_deploy.py checks what it starts",
    ("docs/operations.md", "install -m 644"): "needs systemd; tests/project/test_deploy.py checks the units",
    ("docs/operations.md", "python -m serving.compile"): "tests/serving/test_kernels.py runs it",
    (
        "docs/operations.md",
        "deploy/kubernetes/render.sh",
    ): "needs Kubernetes; tests/project/test_deploy.py runs the script",
    ("docs/operations.md", 'shelfwise collect --workspace "$WORKSPACE"'): "tests/project/test_recovery.py runs it",
    ("docs/operations.md", 'mkdir -p "$REDIS_DATA'): "tests/project/test_recovery.py runs it",
    ("docs/operations.md", 'shelfwise releases promote "$OLD"'): "tests/project/test_recovery.py runs it",
    ("docs/metarank.md", '{"event": "interaction", "id": "e9"'): "is for Metarank, for comparison",
    ("docs/metarank.md", '{"id": "r2"'): "is for Metarank, for comparison",
    ("docs/metarank.md", "state:"): "is for Metarank, for comparison",
}
"""Blocks that do not run, by page and first words, with the reason."""

OUTPUT = {
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
        "For 13089 (",
        '"accepted":1',
        '"degraded":false',
        '"because"',
    ],
    "docs/first-experiment.md": [
        "new-ranker",
        "an effect of 30.0%",
        "days 1 to 7 after the log",
        "new is better",
        "live: ",
    ],
    "docs/evaluation.md": ["counts (counts.csv): ranks"],
    "docs/features.md": ["own"],
    "docs/text_encoder.md": ["nearest to"],
    "docs/nights.md": ["live:", "unpin"],
    "docs/shops/shopify.md": ["preset shopify", "accepted", "ranker", "release", "rank"],
    "docs/shops/woocommerce.md": ["preset woocommerce", "accepted", "ranker", "release"],
    "docs/shops/ga4.md": ["preset ga4", "accepted", "ranker", "release"],
    "docs/shops/olist.md": ["preset olist", "accepted", "ranker", "release"],
    "docs/shops/own_tables.md": ["title: 商品名称", "浏览: view", "accepted", "ranker", "release"],
}
"""Expected output of the blocks of a page, among other output."""


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


def test_every_block_has_a_language() -> None:
    """Every fence has a language; output is `text`. Fences inside lists count too."""
    assert [str(b) for b in BLOCKS if b.language not in LANGUAGES] == []
    fences = sum(len(re.findall(r"^[ \t]*```", path.read_text("utf-8"), re.MULTILINE)) for path in PAGES)
    assert fences == 2 * len(BLOCKS), "a fence is not closed, or is not recognised"


def test_the_list_of_blocks_that_do_not_run_is_current() -> None:
    """There are 21, each with a reason. If a block is removed from its page, remove it from the list."""
    outdated = [key for key in NOT_RUN if not any(b.page == key[0] and b.text.startswith(key[1]) for b in BLOCKS)]
    assert outdated == []
    assert len([b for b in BLOCKS if b.language != "text" and reason_not_run(b)]) == 21


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_a_yaml_block_is_a_configuration(block: Block, tmp_path: Path) -> None:
    """Every key is known and every value valid. A block for another program only has to be YAML."""
    (tmp_path / "block.yaml").write_text(block.text, "utf-8")
    assert yaml.safe_load(block.text)
    if not reason_not_run(block):
        load(tmp_path / "block.yaml")


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "json"], ids=str)
def test_a_json_block_is_json_and_names_its_request_or_file(block: Block) -> None:
    """The title of a block names the request or the file; a block for another program has no title."""
    if block.title.endswith(".jsonl"):
        assert all(isinstance(json.loads(line), dict) for line in block.text.splitlines())
        return
    assert isinstance(json.loads(block.text), dict)
    assert reason_not_run(block) or re.fullmatch(r"(POST|PUT) /v1/\w+", block.title), str(block)


def test_every_promise_in_the_security_page_names_tests_that_exist() -> None:
    """Each row has a promise, at least one test, and a figure or an empty cell."""
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) >= 30
    for row in rows:
        _, promise, tests, _, _ = row.split("|")
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert promise.strip()
        assert named, row
        for path, name in named:
            assert re.search(rf"^(async )?def {name}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE), name


def test_messages_explained_in_the_quickstart_exist() -> None:
    """The messages in the first column of the troubleshooting table occur in the source, except for their `...`."""
    page = (ROOT / "docs" / "quickstart.md").read_text("utf-8").split("## Troubleshooting")[1]
    messages = [m for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for m in re.findall(r"`([^`]+)`", row)]
    source = "".join(
        p.read_text("utf-8")
        for package in ("offline", "serving", "text_encoder", "ranker")
        for p in (ROOT / package).rglob("*.py")
    )
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    parts = [part.strip() for message in messages for part in message.split("...")]
    missing = [p for p in parts if p not in joined and p.replace("item_id", "{lacking[0]}") not in joined]
    assert len(messages) >= 8
    assert missing == []


# --- Running the blocks


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a published nightly run of a simulated shop, to be copied and not changed."""
    directory = tmp_path_factory.mktemp("shop")
    Terminal(directory, QUICK).shell("shelfwise simulate --items 80 --users 250 --days 14 --seed 3\nshelfwise nightly")
    return directory / "workspace"


@pytest.fixture
def terminal(shop: Path, tmp_path: Path) -> Terminal:
    """A terminal in its own directory, with a copy of the shop whose release is live."""
    shutil.copytree(shop, tmp_path / "workspace", ignore=shutil.ignore_patterns("redis", "lock"))
    release = next(p.name for p in (shop / "releases").iterdir() if (p / MANIFEST).is_file())
    terminal = Terminal(tmp_path, QUICK, ID=release)
    terminal.shell(f"shelfwise releases promote {release}")
    return terminal


def run_page(terminal: Terminal, page: str) -> str:
    """Output of a page's blocks, run in order."""
    output = []
    with ExitStack() as services:
        address = None
        for block in [b for b in BLOCKS if b.page == page]:
            if reason_not_run(block) or block.language in ("text", "html"):
                continue
            if re.fullmatch(r"[\w.-]+\.(py|yaml|jsonl)", block.title):
                (terminal.directory / block.title).write_text(block.text, "utf-8")
                continue
            if "shelfwise serve" in block.text:
                services.close()  # the block starts its own service
                address = None
            elif address is None and (block.language == "json" or "localhost:8000" in block.text):
                address = services.enter_context(terminal.service())
            try:
                if block.language == "json":
                    assert send(str(address), block.title, block.text) in (200, 202)
                elif block.language == "sh":
                    output.append(terminal.shell(block.text))
                elif block.language == "python":
                    output.append(terminal.python(block.text))
            except Exception as error:
                raise AssertionError(f"{block}: {error}") from error
    return "\n".join(output)


def expect(page: str, output: str) -> None:
    missing = [words for words in OUTPUT.get(page, []) if words not in output]
    assert missing == [], f"{page} printed\n{output}"


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in RUN if p not in (*FROM_NOTHING, *SHOPS)])
def test_the_blocks_of_a_page_run_in_order(page: str, terminal: Terminal) -> None:
    """Commands and programs succeed, and the service accepts request bodies."""
    expect(page, run_page(terminal, page))


@pytest.mark.slow
def test_the_readme_runs_from_an_empty_directory(tmp_path: Path) -> None:
    """Simulate, nightly, rank, similar, releases, then serve and its requests: each succeeds and prints its output."""
    output = run_page(Terminal(tmp_path, "encoder: {max_tokens: 16}\n"), "README.md")
    expect("README.md", output)
    assert output.count('"degraded":false') >= 2


@pytest.mark.nights
def test_the_first_experiment_leads_from_two_releases_to_a_verdict(tmp_path: Path) -> None:
    """Its commands run from an empty directory, and the release with more than one tree is shipped."""
    page = "docs/first-experiment.md"
    expect(page, run_page(Terminal(tmp_path, "encoder: {max_tokens: 16, refreshes: 0, epochs: 2}\n"), page))


@pytest.mark.slow
def test_the_quickstart_leads_from_a_csv_to_a_ranked_list(tmp_path: Path) -> None:
    """The commands of the page run on a synthetic export with the same columns and errors, without further steps."""
    invoices.write(tmp_path / "raw_2009_2010.csv.gz")
    expect("docs/quickstart.md", run_page(Terminal(tmp_path), "docs/quickstart.md"))


@pytest.fixture(scope="session")
def month(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of a simulated shop with enough purchases for a ranker that is better than a random order."""
    directory = tmp_path_factory.mktemp("month")
    Terminal(directory).shell("shelfwise simulate --items 100 --users 700 --days 30 --seed 5 --end 2026-06-01")
    return directory / "workspace" / "data"


@pytest.mark.slow
@pytest.mark.parametrize("page", SHOPS)
def test_the_page_of_a_shop_leads_from_its_export_to_a_ranked_list(
    page: str, shop: Path, month: Path, tmp_path: Path
) -> None:
    """The commands of the page run on a simulated shop, written as the system of the page writes its export."""
    (tmp_path / "my-export").mkdir()
    only_purchases = SHOPS[page] in ("shopify", "woocommerce")
    SYSTEMS[SHOPS[page]](read_shop(month if only_purchases else shop / "data"), tmp_path / "my-export")
    # The encoder for other languages than English takes longer; `test_chinese_night.py` runs a night with it.
    quick = QUICK.replace("trees: 15", "trees: 100").replace("encoder: {", "encoder: {model: minilm, ")
    expect(page, run_page(Terminal(tmp_path, quick), page))


RAW = ROOT.parent / "shared" / "data" / "online_retail" / "raw_2009_2010.csv.gz"


@pytest.mark.slow
@pytest.mark.skipif(not RAW.is_file(), reason="the real data in ../shared/data is missing")
def test_the_quickstart_holds_on_the_real_export(tmp_path: Path) -> None:
    """The same page on half a million real rows; only the nightly run is shortened."""
    (tmp_path / "raw_2009_2010.csv.gz").symlink_to(RAW)
    quick = "encoder: {mode: frozen, max_tokens: 16}\nlists: {most: 600}\nranker: {trees: 60, refit: false}\n"
    expect("docs/quickstart.md", run_page(Terminal(tmp_path, quick), "docs/quickstart.md"))
