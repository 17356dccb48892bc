"""The configuration: what it refuses, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from offline.config.configuration import Config, ConfigError, load, redis_url

TOP = (
    "workspace, log, seed, import, simulate, windows, lists, slices, features, encoder, ranker, checks, gate, "
    "retention, serving"
)


def written(directory: Path, content: str | bytes) -> Path:
    path = directory / "shop.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal(directory: Path, content: str | bytes) -> str:
    """The message for a file, without the file's name, which every line of it begins with."""
    path = written(directory, content)
    with pytest.raises(ConfigError) as refused:
        load(path)
    lines = str(refused.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


def test_without_a_file_the_defaults_hold() -> None:
    assert load(None) == Config()
    assert load(None).workspace == Path("workspace")


def test_an_empty_file_says_nothing_and_the_defaults_hold(tmp_path: Path) -> None:
    assert load(written(tmp_path, "# nothing yet\n")) == Config()


def test_what_the_file_says_holds_and_the_rest_stays_at_its_default(tmp_path: Path) -> None:
    found = load(written(tmp_path, "seed: 3\nlists: {size: 50}\n"))
    assert (found.seed, found.lists.size, found.lists.most) == (3, 50, Config().lists.most)


def test_a_change_goes_over_the_file_and_none_is_no_change(tmp_path: Path) -> None:
    path = written(tmp_path, "seed: 3\nworkspace: here\n")
    assert load(path, workspace=Path("there"), seed=None) == Config(workspace=Path("there"), seed=3)


def test_everything_made_is_in_the_workspace_and_a_relative_one_stays_relative(tmp_path: Path) -> None:
    """A relative path is taken from the current directory, not from the file's."""
    found = load(written(tmp_path, "workspace: shop/w"))
    assert [found.data, found.runs, found.releases, found.redis] == [
        Path("shop/w") / n for n in ("data", "runs", "releases", "redis")
    ]


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(None).seed = 4  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        load(None).lists.size = 4  # type: ignore[misc]


def test_the_address_of_redis_comes_from_the_environment_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may carry a password, so no file may hold it; an empty variable is none."""
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/1")
    assert redis_url() == "redis://elsewhere:6379/1"
    monkeypatch.setenv("REDIS_URL", "")
    assert redis_url() is None
    assert refusal(tmp_path, "redis_url: redis://x").startswith("redis_url: no such key")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sead: 3", f"sead: no such key; known here: {TOP}"),
        ("lists: {sice: 3}", "lists.sice: no such key; known here: source, attribution_s, size, most, refreshes"),
        ("sources: {events: []}", f"sources: no such key; known here: {TOP}"),
        ("1: 2", f"1: no such key; known here: {TOP}"),
        (
            "seed: twelve",
            "seed is 'twelve'; expected a whole number >= 0 and < 2147483648 "
            "(everything drawn at random follows from it)",
        ),
        (
            "seed: 1.5",
            "seed is 1.5; expected a whole number >= 0 and < 2147483648 (everything drawn at random follows from it)",
        ),
        (
            "seed: yes",
            "seed is True; expected a whole number >= 0 and < 2147483648 (everything drawn at random follows from it)",
        ),
        (
            "lists: {size: 1}",
            "lists.size is 1; expected a whole number >= 2 and <= 5000 (candidates of a rebuilt list)",
        ),
        (
            "lists: {attribution_s: .nan}",
            "lists.attribution_s is nan; expected a number > 0 and <= 7776000 "
            "(an action this late is still the list's)",
        ),
        (
            "lists: {attribution_s: .inf}",
            "lists.attribution_s is inf; expected a number > 0 and <= 7776000 "
            "(an action this late is still the list's)",
        ),
        (
            "lists: {source: maybe}",
            "lists.source is 'maybe'; expected 'auto', 'logged' or 'rebuilt' (auto: logged where impressions are)",
        ),
        ("lists:", "lists is None; expected keys and values; known here: source, attribution_s, size, most, refreshes"),
        (
            "lists: [1]",
            "lists is [1]; expected keys and values; known here: source, attribution_s, size, most, refreshes",
        ),
        (
            "windows: {encoder: 0.5}",
            "windows: the shares add up to 1.35; encoder + ranker + validation + test must be 1",
        ),
        (
            "workspace: [a]",
            "workspace is ['a']; this is not a valid path (where data, runs, releases and the embedded "
            "Valkey live; from the current directory if relative)",
        ),
        (
            "import: {events: [{format: csv}]}",
            "import.events[0].path is missing (The file. Gzip is unpacked as it is read.)",
        ),
        ("import: {events: []}", "import.events is []; needs at least 1 entries (Files of events.)"),
        (
            "import: {events: [{path: a.jsonl}, {path: b.csv, event: foo}]}",
            "import.events[1].event: 'foo' is no event kind; use one of impression, view, click, cart, purchase, "
            "rating (The kind of every row, where the file has no such column.)",
        ),
        (
            "ranker: {label_gain: [0, x]}",
            "ranker.label_gain[1] is 'x'; expected a number (What gain 0, 1, 2, ... is "
            "worth, rising; ndcg's own is 2^gain - 1.)",
        ),
        ("ranker: {lambda_l2: -1}", "ranker.lambda_l2 is -1; expected a number >= 0 (L2 penalty on leaf values.)"),
        (
            "serving: {clock_offset_s: .inf}",
            "serving.clock_offset_s is inf; expected a number that is finite (Added to "
            "the clock: to serve a log of the past as of its end. 0 in earnest.)",
        ),
        ("- seed\n- 3", "holds a list; keys and values are expected, as `seed: 17`"),
        ("hello", "holds a str; keys and values are expected, as `seed: 17`"),
        (b"workspace: caf\xe9", "byte 14 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_what_cannot_be_is_refused_with_key_and_range(tmp_path: Path, content: str | bytes, expected: str) -> None:
    """The sentence names the file, the key as it is written, what it holds, and what it may hold."""
    assert refusal(tmp_path, content) == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("seed: [1\nx: }", "line 2, column 2"),
        ("seed: 1\nseed: 2", "the key 'seed' is twice"),
        ("lists:\n  size: 3\n  size: 4", "the key 'size' is twice"),
        ("simulate: {end: 2026-13-01}", "month must be in 1..12"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("seed: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("seed: \0", "unacceptable character"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_what_is_not_yaml_is_refused_with_its_place(tmp_path: Path, content: str, says: str) -> None:
    """Nothing in a file is run, and no key is taken twice."""
    message = refusal(tmp_path, content)
    assert message.startswith("not YAML: ")
    assert says in message


def test_a_number_that_may_be_absent_says_so(tmp_path: Path) -> None:
    assert refusal(tmp_path, "encoder: {max_tokens: 1}").startswith(
        "encoder.max_tokens is 1; expected a whole number >= 8, or null ("
    )


def test_a_value_without_end_is_shown_in_short(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, f"seed: {'x' * 100_000}")) < 250


def test_every_fault_is_named_at_once(tmp_path: Path) -> None:
    keys = [line.split()[0] for line in refusal(tmp_path, "seed: x\nfoo: 1\nlists: {size: 0}").split("\n")]
    assert keys == ["seed", "lists.size", "foo:"]


def test_a_file_that_is_not_there_or_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file; leave --config out to use the defaults"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_fault_without_a_file_is_the_configurations() -> None:
    with pytest.raises(ConfigError, match=r"^configuration: seed is -1; expected a whole number >= 0"):
        load(None, seed=-1)
