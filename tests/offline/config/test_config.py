"""The configuration: defaults, invalid values and the error messages."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from offline.config.configuration import Config, ConfigError, load, redis_url
from serving.config import ServiceConfig

TOP = (
    "workspace, log, vectors, seed, import, simulate, windows, lists, slices, features, encoder, sequence, ranker, "
    "checks, gate, earnings, retention, redis, placements, experiments, serving"
)

LISTS = "source, window_lists, attribution_s, size, most, refreshes"


def write_config(directory: Path, content: str | bytes) -> Path:
    path = directory / "shop.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def error_of(directory: Path, content: str | bytes) -> str:
    """The error message for a file, without the file name that starts each line."""
    path = write_config(directory, content)
    with pytest.raises(ConfigError) as error:
        load(path)
    lines = str(error.value).split("\n")
    assert all(line.startswith(f"{path}: ") for line in lines)
    return "\n".join(line.removeprefix(f"{path}: ") for line in lines)


def test_without_a_file_all_values_are_defaults() -> None:
    assert load(None) == Config()
    assert load(None).workspace == Path("workspace")


def test_an_empty_file_gives_the_defaults(tmp_path: Path) -> None:
    assert load(write_config(tmp_path, "# nothing yet\n")) == Config()


def test_values_from_the_file_override_defaults_key_by_key(tmp_path: Path) -> None:
    config = load(write_config(tmp_path, "seed: 3\nlists: {size: 50}\n"))
    assert (config.seed, config.lists.size, config.lists.most) == (3, 50, Config().lists.most)


def test_a_change_overrides_the_file_unless_it_is_none(tmp_path: Path) -> None:
    path = write_config(tmp_path, "seed: 3\nworkspace: here\n")
    assert load(path, workspace=Path("there"), seed=None) == Config(workspace=Path("there"), seed=3)


def test_all_directories_are_in_the_workspace_and_stay_relative(tmp_path: Path) -> None:
    """A relative path starts at the current directory, not at the file's."""
    config = load(write_config(tmp_path, "workspace: shop/w"))
    assert [config.data, config.runs, config.releases, config.embedded] == [
        Path("shop/w") / n for n in ("data", "runs", "releases", "redis")
    ]


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(None).seed = 4  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        load(None).lists.size = 4  # type: ignore[misc]


def test_the_url_of_redis_comes_from_the_environment_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may contain a password, so the file may not set it. An empty variable counts as unset."""
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere:6379/1")
    assert redis_url() == "redis://elsewhere:6379/1"
    monkeypatch.setenv("REDIS_URL", "")
    assert redis_url() is None
    assert error_of(tmp_path, "redis_url: redis://x").startswith("redis_url: no such key")


def test_the_url_of_redis_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As secrets are mounted. Both variables, a missing file and an empty file are errors, not the embedded Valkey."""
    secret = tmp_path / "redis-url"
    monkeypatch.setenv("REDIS_URL", "")
    monkeypatch.setenv("REDIS_URL_FILE", str(secret))
    with pytest.raises(ConfigError, match=r"cannot read the address of Redis in REDIS_URL_FILE"):
        redis_url()
    secret.write_text("\n")
    with pytest.raises(ConfigError, match=r"is empty: write redis://HOST:6379/0 into it"):
        redis_url()
    secret.write_text("redis://:password@elsewhere:6379/0\n")
    assert redis_url() == "redis://:password@elsewhere:6379/0"
    monkeypatch.setenv("REDIS_URL", "redis://here:6379/0")
    with pytest.raises(ConfigError, match="are both set: unset one of them"):
        redis_url()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sead: 3", f"sead: no such key; valid keys: {TOP}"),
        ("lists: {sice: 3}", f"lists.sice: no such key; valid keys: {LISTS}"),
        ("sources: {events: []}", f"sources: no such key; valid keys: {TOP}"),
        ("1: 2", f"1: no such key; valid keys: {TOP}"),
        (
            "seed: twelve",
            "seed is 'twelve'; expected a whole number >= 0 and < 2147483648 (Seed of every random draw.)",
        ),
        ("seed: 1.5", "seed is 1.5; expected a whole number >= 0 and < 2147483648 (Seed of every random draw.)"),
        ("seed: yes", "seed is True; expected a whole number >= 0 and < 2147483648 (Seed of every random draw.)"),
        (
            "lists: {size: 1}",
            "lists.size is 1; expected a whole number >= 2 and <= 5000 (Candidates per rebuilt list.)",
        ),
        (
            "lists: {attribution_s: .nan}",
            "lists.attribution_s is nan; expected a number > 0 and <= 7776000 "
            "(Seconds after a list within which an action is attributed to it, in labels as in features.)",
        ),
        (
            "lists: {attribution_s: .inf}",
            "lists.attribution_s is inf; expected a number > 0 and <= 7776000 "
            "(Seconds after a list within which an action is attributed to it, in labels as in features.)",
        ),
        (
            "lists: {source: maybe}",
            "lists.source is 'maybe'; expected 'auto', 'logged' or 'rebuilt' (Source of the lists. logged: lists from "
            "logged impressions. rebuilt: lists that retrieval would have offered. auto: logged once there are enough "
            "for every window (`window_lists`), until then both.)",
        ),
        ("lists:", f"lists is None; expected keys and values; valid keys: {LISTS}"),
        ("lists: [1]", f"lists is [1]; expected keys and values; valid keys: {LISTS}"),
        (
            "windows: {encoder: 0.5}",
            "windows: the shares add up to 1.35; encoder + ranker + validation + test must be 1",
        ),
        (
            "workspace: [a]",
            "workspace is ['a']; this is not a valid path (Directory for data, runs, releases and the embedded "
            "Valkey. A relative path starts at the current directory.)",
        ),
        ("import: {events: [{where: 'true'}]}", "import.events[0].from is missing (Table whose rows are read.)"),
        ("import: {events: []}", "import.events is []; at least 1 needed (Tables of events.)"),
        (
            "import: {events: [{from: a.jsonl}, {from: b.csv, columns: {event: {value: foo}}}], unknown_items: keep}",
            "import.events[1].columns: 'foo' is not an event kind; use one of impression, view, click, cart, purchase, "
            "rating, drop (Canonical column to path, or to an object with more options. A column of the same name "
            "needs no entry; `null` leaves it out.)",
        ),
        (
            "ranker: {label_gain: [0, x]}",
            "ranker.label_gain[1] is 'x'; expected a number (Weight in training of gain 0, 1, 2, and so on, in "
            "ascending order and starting with 0. The ndcg metric uses 2^gain - 1.)",
        ),
        (
            "ranker: {lambda_l2: -1}",
            "ranker.lambda_l2 is -1; expected a number >= 0 (L2 regularisation of leaf values.)",
        ),
        (
            "serving: {clock_offset_s: .inf}",
            "serving.clock_offset_s is inf; expected a finite number (Added to "
            "the clock, to serve a historical log as of its end. 0 in production.)",
        ),
        ("- seed\n- 3", "contains a list; expected keys and values, such as `seed: 17`"),
        ("hello", "contains a str; expected keys and values, such as `seed: 17`"),
        (b"workspace: caf\xe9", "byte 14 is not UTF-8; save the file as UTF-8"),
    ],
)
def test_an_invalid_value_is_an_error_with_its_key_and_range(
    tmp_path: Path, content: str | bytes, expected: str
) -> None:
    """The message names the file, the key, its value and the values allowed."""
    assert error_of(tmp_path, content) == expected


PLACEMENT = "sources, requires, rules, limit, explore, variants, objective"
PLACED = "(Settings of the lists of each placement, a named spot in the shop, by its name.)"
BAD_NAME = "is not a valid name: use 1 to 64 characters, without white space and control characters"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{home: {lenght: 3}}", f".home.lenght: no such key; valid keys: {PLACEMENT}"),
        ("{home: 3}", f".home is 3; expected keys and values; valid keys: {PLACEMENT}"),
        ("{home: }", f".home is None; expected keys and values; valid keys: {PLACEMENT}"),
        ("[home]", f" is ['home']; expected a valid dictionary {PLACED}"),
        ("{front page: {}}", f".front page: 'front page' {BAD_NAME}"),
        ('{"": {}}', f".: '' {BAD_NAME}"),
        ('{"a\\0b": {}}', f".a\0b: 'a\\x00b' {BAD_NAME}"),
        ('{"\\u00a0": {}}', f".\u00a0: '\\xa0' {BAD_NAME}"),
        (f"{{{'x' * 65}: {{}}}}", f".{'x' * 65}: '{'x' * 65}' {BAD_NAME}"),
        (
            "{home: {limit: 501}}",
            ".home.limit is 501; expected a whole number >= 1 and <= 500, or null (Length of the list if the request "
            "has no `limit`.)",
        ),
        (
            "{home: {limit: yes}}",
            ".home.limit is True; expected a whole number >= 1 and <= 500, or null (Length of the list if the request "
            "has no `limit`.)",
        ),
        (
            "{home: {explore: 1.5}}",
            ".home.explore.share is 1.5; expected a number >= 0 and <= 1 (Share of lists that are explored. A number "
            "alone is this share.)",
        ),
        (
            "{home: {explore: often}}",
            ".home.explore is 'often'; expected keys and values; valid keys: mode, share, quota, new_below, new_days, "
            "budget",
        ),
        (
            "{home: {requires: [cart]}}",
            ".home.requires[0] is 'cart'; expected 'query' or 'items' (Parts that a request must have; without them, "
            "it is refused.)",
        ),
        (
            "{home: {sources: {seen: 1}}}",
            ".home.sources.seen is 'seen'; expected 'query', 'query_words', 'again', 'co_occurrence', 'linear', "
            "'text', 'popular', 'popular_in_category', 'new', 'similar', 'bought_together', 'goes_with', 'next' or "
            "'buy_again'",
        ),
        ("{home: {sources: {new: 0}}}", ".home.sources.new is 0; expected greater than 0"),
        ("{home: {sources: {new: .inf}}}", ".home.sources.new is inf; expected a finite number"),
        ("{home: {sources: {new: .nan}}}", ".home.sources.new is nan; expected a finite number"),
        (
            "{home: {rules: {cap: [{attribute: brand}]}}}",
            ".home.rules: Object missing required field `most` - at `$.cap[0]` (Rules for the lists of this placement, "
            "after those of `serving.rules` and before those of the request; see docs/rules.md.)",
        ),
        (
            "{home: {explore: 0.1, rules: {cap: [{attribute: brand, most: 1}]}}}",
            f".home: a list with rules is never explored: remove `explore` or `rules` {PLACED}",
        ),
    ],
)
def test_an_invalid_placement_is_an_error_with_its_key(tmp_path: Path, content: str, expected: str) -> None:
    assert error_of(tmp_path, f"placements: {content}") == f"placements{expected}"


def test_there_are_at_most_fifty_placements(tmp_path: Path) -> None:
    names = [f"p{k}: {{}}" for k in range(51)]
    assert "at most 50 items" in error_of(tmp_path, f"placements: {{{', '.join(names)}}}")
    path = write_config(tmp_path, f"placements: {{{', '.join(names[:50])}}}")
    assert len(load(path).placements) == 50


def test_the_service_gets_the_placements_beside_its_own_settings(tmp_path: Path) -> None:
    """Placements are no key of `serving`, and survive the JSON that its workers are started with."""
    assert "serving.placements: no such key" in error_of(tmp_path, "serving: {placements: {home: {}}}")
    rules = "rules: {filter: {attribute: price, lt: 5}}"
    config = load(write_config(tmp_path, f"serving: {{port: 81}}\nplacements: {{a: {{limit: 3}}, b: {{{rules}}}}}"))
    service = config.service
    assert (service.port, list(service.placements), service.placements["a"].limit) == (81, ["a", "b"], 3)
    assert ServiceConfig.model_validate_json(service.model_dump_json()) == service
    assert load(None).service == ServiceConfig()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("seed: [1\nx: }", "line 2, column 2"),
        ("seed: 1\nseed: 2", "duplicate key 'seed'"),
        ("lists:\n  size: 3\n  size: 4", "duplicate key 'size'"),
        ("simulate: {end: 2026-13-01}", "month must be in 1..12"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("seed: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("seed: \0", "unacceptable character"),
        ("[" * 5000, "not YAML"),
    ],
)
def test_invalid_yaml_is_an_error_with_its_line(tmp_path: Path, content: str, expected: str) -> None:
    """No code in a file is executed, and no key may occur twice."""
    message = error_of(tmp_path, content)
    assert message.startswith("not YAML: ")
    assert expected in message


def test_the_error_for_an_optional_number_mentions_null(tmp_path: Path) -> None:
    assert error_of(tmp_path, "encoder: {max_tokens: 1}").startswith(
        "encoder.max_tokens is 1; expected a whole number >= 8, or null ("
    )


def test_a_long_value_is_shortened_in_the_error(tmp_path: Path) -> None:
    assert len(error_of(tmp_path, f"seed: {'x' * 100_000}")) < 250


def test_all_errors_are_reported_together(tmp_path: Path) -> None:
    keys = [line.split()[0] for line in error_of(tmp_path, "seed: x\nfoo: 1\nlists: {size: 0}").split("\n")]
    assert keys == ["seed", "lists.size", "foo:"]


def test_a_missing_file_and_a_directory_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file; leave --config out to use the defaults"):
        load(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_an_error_without_a_file_starts_with_configuration() -> None:
    with pytest.raises(ConfigError, match=r"^configuration: seed is -1; expected a whole number >= 0"):
        load(None, seed=-1)
