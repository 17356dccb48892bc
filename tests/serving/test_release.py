"""Releases: equal inputs give equal bytes, and a release that is damaged or does not match is never loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.catalogue import Catalogue
from features.decay import ItemState
from features.history import EMPTY, History
from features.linear import Linear
from features.log import Kind
from features.neighbours import Neighbours
from features.segments import Segments
from features.sequence import WEIGHTS
from features.table import Items, names, rows
from features.text import tokens
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary
from serving.ranking.overlay import Overlay
from serving.release.manifest import ReleaseError, as_json, list_releases, read_manifest, release_id
from serving.release.release import load_release, write_release
from serving.store import ItemFields
from tests.worlds import START, make_events, make_sequence_model

CUT_OFF = 1_700_000_000.0
COLOURS = ("blue", "red")


def planted_items(n: int = 20) -> Items:
    """Items of two alternating colours: `blue-00, blue-02, ..` have similar vectors, and so do `red-01, red-03, ..`."""
    rng = np.random.default_rng(3)
    ids = sorted(f"{COLOURS[i % 2]}-{i:02d}" for i in range(n))
    colour = np.array([COLOURS.index(i.split("-")[0]) for i in ids], np.int32)
    vectors = np.full((n + 1, 16), np.nan, np.float32)
    vectors[:n] = rng.normal(0, 0.1, (n, 16))
    vectors[np.arange(n), colour] += 1
    category = np.append(colour, 2).astype(np.int32)
    catalogue = Catalogue(
        ids,
        [f"A {i} thing" for i in ids],
        np.append(rng.uniform(1, 9, n), np.nan),
        category,
        list(COLOURS),
        np.zeros(n + 1, np.int32),
        [],
        np.append(np.full(n, CUT_OFF - 9e6), np.nan),
        np.append(rng.uniform(0, 1, n), np.nan)[:, None],
        ["net weight"],
        np.append(np.arange(n + 1), n),
        colour,
        ["hue=blue", "hue=red"],
    )
    state = ItemState.empty(category, len(COLOURS))
    m = 200
    state.apply(
        rng.integers(0, n, m).astype(np.int32), rng.integers(0, 5, m).astype(np.int8), CUT_OFF - rng.uniform(1, 9e5, m)
    )
    prior = np.append(rng.uniform(0, 0.2, n), np.nan).astype(np.float32)
    factors = np.vstack([rng.normal(size=(n, 4)), np.zeros((1, 4))]).astype(np.float32)
    segments = Segments(rng.normal(size=(3, 4)).astype(np.float32), np.log(np.full(3, 1 / 3, np.float32)))
    return Items(
        catalogue,
        Vectors.quantise(vectors),
        prior,
        Neighbours.none(n, 3),
        state,
        factors=factors,
        segments=segments,
        words=Vocabulary.build(catalogue, vectors),
    )


def with_sequence(items: Items) -> Items:
    return replace(items, sequence=make_sequence_model(len(items.catalogue), 16))


def planted_model(items: Items, seed: int = 0, sign: float = 1.0) -> str:
    """Trees that prefer items of the colour the user clicked; with sign -1, items of another colour."""
    rng = np.random.default_rng(seed)
    n = len(items.catalogue)
    every, table, label = np.arange(n, dtype=np.int32), [], []
    for _ in range(30):
        liked = rng.choice(every[items.catalogue.category[:-1] == rng.integers(2)], 3).astype(np.int32)
        at = CUT_OFF - np.arange(1.0, 4.0)
        history = History(liked, np.full(3, Kind.CLICK, np.int8), at, np.empty(0, np.int32), np.empty(0))
        table.append(rows(items, history, every, CUT_OFF))
        label.append(sign * (items.catalogue.category[:-1] == items.catalogue.category[liked[0]]))
    data = lightgbm.Dataset(
        np.concatenate(table), np.concatenate(label), feature_name=[f.replace(" ", "_") for f in names(items)]
    )
    settings = {"objective": "regression", "num_leaves": 7, "verbose": -1, "num_threads": 1, "deterministic": True}
    return str(lightgbm.train(settings, data, 20).model_to_string())


def columns(items: Items) -> pa.Table:
    ids = list(items.catalogue.item_ids)
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(16 * len(ids), np.float32)), 16)
    texts = {name: pa.nulls(len(ids), pa.string()) for name in ("title", "description", "category", "brand")}
    return pa.table({"item_id": ids, **texts, "embedding": embedding})


def publish(root: Path, items: Items | None = None, **changed: Any) -> Path:
    """Write a planted release under `root`."""
    items = items or planted_items()
    given: dict[str, Any] = {
        "items": items,
        "model_text": changed.pop("model_text", None) or planted_model(items),
        "item_columns": columns(items),
        "encoder_dir": None,
        "encoder_fingerprint": "f00d",
        "cut_off": CUT_OFF,
        "window": {"ranker": [CUT_OFF - 9e5, CUT_OFF]},
        "metrics": {"ndcg@10": np.float64(0.5), "lists": np.int64(7), "cold": float("nan")},
        "parent": None,
        "created_at": CUT_OFF + 60,
    }
    return write_release(root, **(given | changed))


@pytest.fixture(scope="module")
def model() -> str:
    return planted_model(planted_items())


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, model: str) -> Path:
    return publish(tmp_path_factory.mktemp("releases"), model_text=model)


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / written.name))


def test_a_loaded_release_reproduces_rows_and_scores_exactly(written: Path, model: str) -> None:
    items, release = planted_items(), load_release(written)
    history = History(
        np.array([3, -1], np.int32),
        np.array([2, 4], np.int8),
        CUT_OFF - np.array([5.0, 60.0]),
        np.array([3, 4], np.int32),
        CUT_OFF - np.array([6.0, 6.0]),
    )
    candidates = np.array([0, 5, -1, 19], np.int32)
    expected = rows(items, history, candidates, CUT_OFF + 10)
    loaded = rows(release.items, history, candidates, CUT_OFF + 10)
    assert loaded.tobytes() == expected.tobytes()
    booster = lightgbm.Booster(model_str=model)
    np.testing.assert_array_equal(booster.predict(expected, raw_score=True), release.trees.score(loaded))
    assert list(release.items.catalogue.titles) == list(items.catalogue.titles)


def test_the_manifest_describes_the_release(written: Path) -> None:
    manifest = read_manifest(written)
    assert manifest.id == written.name
    assert manifest.id.startswith("20231114-")  # the UTC date of 1700000060
    assert len(manifest.id) == len("20231114-") + 10
    assert (manifest.items, manifest.dimension, manifest.cut_off) == (20, 16, CUT_OFF)
    assert manifest.metrics == {"ndcg@10": 0.5, "lists": 7, "cold": None}
    assert manifest.feature_names == list(names(planted_items()))
    on_disk = {p.relative_to(written).as_posix() for p in written.rglob("*") if p.is_file()}
    assert set(manifest.files) == on_disk - {"manifest.json"}


def test_the_items_file_names_its_encoder(written: Path) -> None:
    table = pq.read_table(written / "items.parquet")
    assert table.schema.metadata[b"encoder_fingerprint"] == b"f00d"
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")


def test_equal_inputs_give_the_same_release(written: Path, tmp_path: Path, model: str) -> None:
    again = publish(tmp_path, model_text=model)
    assert again.name == written.name
    for path in written.rglob("*"):
        if path.is_file():
            assert (again / path.relative_to(written)).read_bytes() == path.read_bytes()
    assert publish(tmp_path, model_text=model) == again, "writing it again in the same place adds nothing"
    assert [p.name for p in tmp_path.iterdir()] == [again.name]


@pytest.mark.parametrize("change", [{"cut_off": CUT_OFF - 1}, {"parent": "20231113-0000000000"}, {"metrics": {}}])
def test_any_other_input_gives_another_release(
    written: Path, tmp_path: Path, model: str, change: dict[str, Any]
) -> None:
    assert publish(tmp_path, model_text=model, **change).name != written.name


def test_arrays_are_memory_mapped_and_read_only(written: Path) -> None:
    items = load_release(written).items
    for array in (items.vectors.code, items.prior, items.catalogue.price, items.state.value):
        assert type(array) is np.ndarray
        assert not array.flags.writeable
        assert not array.flags.owndata
    items.state.copy().apply(np.zeros(1, np.int32), np.ones(1, np.int8), np.full(1, CUT_OFF))


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    items = planted_items()
    other = replace(items, catalogue=replace(items.catalogue, number_names=["length"]))
    with pytest.raises(
        ReleaseError,
        match=r"the given model was trained on \d+ features, the rows have \d+; column \d+ is 'item_length' in the "
        r"model, 'item_net_weight' in the rows: train on the features of this version and catalogue",
    ):
        publish(tmp_path, model_text=planted_model(other))
    with pytest.raises(ReleaseError, match="the given model: "):
        publish(tmp_path, model_text="no model")
    unsorted = replace(items, catalogue=replace(items.catalogue, item_ids=list(items.catalogue.item_ids)[::-1]))
    with pytest.raises(ReleaseError, match="item IDs are not unique and ascending: sort by item_id and remove"):
        publish(tmp_path, unsorted)
    assert list(tmp_path.iterdir()) == []


def test_an_encoder_is_copied_but_code_in_it_is_refused(tmp_path: Path, model: str) -> None:
    encoder = tmp_path / "encoder"
    (encoder / "1_Pooling").mkdir(parents=True)
    (encoder / "model.safetensors").write_bytes(b"weights")
    (encoder / "1_Pooling" / "config.json").write_text("{}")
    written = publish(tmp_path / "good", model_text=model, encoder_dir=encoder)
    assert (written / "encoder" / "1_Pooling" / "config.json").read_text() == "{}"
    assert "encoder/model.safetensors" in load_release(written).manifest.files
    for name in ("pytorch_model.bin", "modeling.py", "x.PKL"):
        (encoder / name).write_bytes(b"")
        with pytest.raises(
            ReleaseError, match=f"{name}: an encoder in a release may only contain safetensors, JSON and text"
        ):
            publish(tmp_path / "bad", model_text=model, encoder_dir=encoder)
        (encoder / name).unlink()
    assert list((tmp_path / "bad").iterdir()) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["ranker.txt", "items.parquet", "arrays/vector_code.npy"])
def test_a_changed_byte_is_reported_with_both_checksums(copy: Path, name: str) -> None:
    flip(copy / name)
    with pytest.raises(
        ReleaseError, match=rf"{name} has SHA-256 [0-9a-f]{{64}}, the manifest says [0-9a-f]{{64}}: copy"
    ):
        load_release(copy)


def test_a_truncated_file_is_reported_with_both_sizes_even_unverified(copy: Path) -> None:
    size = (copy / "ranker.txt").stat().st_size
    os.truncate(copy / "ranker.txt", 10)
    with pytest.raises(ReleaseError, match=f"ranker.txt has 10 bytes, the manifest says {size}: copy"):
        load_release(copy, verify=False)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "arrays" / "prior.npy").unlink()
    with pytest.raises(ReleaseError, match=r"arrays/prior\.npy is missing: copy the release again"):
        load_release(copy)


def test_a_directory_without_a_manifest_is_not_a_release(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"is not a release: it has no manifest\.json"):
        load_release(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff\xfe", b"[" * 100_000])
def test_an_invalid_manifest_is_reported(copy: Path, content: bytes) -> None:
    (copy / "manifest.json").write_bytes(content)
    with pytest.raises(ReleaseError, match=r"manifest\.json is not a valid manifest: .*; copy the release again or"):
        load_release(copy)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """Change the manifest and recompute its ID, as an attacker could."""
    import msgspec

    from serving.release.manifest import Manifest

    document = json.loads((path / "manifest.json").read_text())
    change(document)
    (path / "manifest.json").write_text(json.dumps(document))
    manifest = msgspec.convert(document, Manifest)
    (path / "manifest.json").write_bytes(as_json(msgspec.structs.replace(manifest, id=release_id(manifest))))
    return path


def test_an_edited_manifest_does_not_match_its_id(copy: Path) -> None:
    text = (copy / "manifest.json").read_text()
    (copy / "manifest.json").write_text(text.replace('"ndcg@10": 0.5', '"ndcg@10": 0.9'))
    with pytest.raises(
        ReleaseError, match=r"ID '20231114-\w{10}' does not match the content, whose ID is '20231114-\w{10}'"
    ):
        load_release(copy)


def test_another_format_is_reported_before_anything_else(copy: Path) -> None:
    (copy / "manifest.json").write_text('{"format": 3, "everything": "different"}')
    with pytest.raises(ReleaseError, match="format 3, this version reads 2: serve it with the version that wrote it"):
        load_release(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "arrays/../../outside", "a\\b", ""])
def test_a_path_outside_the_release_is_refused(copy: Path, name: str) -> None:
    rewrite(copy, lambda m: m["files"].update({name: m["files"]["ranker.txt"]}))
    with pytest.raises(ReleaseError, match="is outside the release; refused"):
        load_release(copy)


def test_a_link_to_a_file_outside_the_release_is_refused(copy: Path, tmp_path: Path) -> None:
    (copy / "ranker.txt").rename(tmp_path / "ranker.txt")
    (copy / "ranker.txt").symlink_to(tmp_path / "ranker.txt")
    with pytest.raises(ReleaseError, match="is a link to a file outside the release; refused"):
        load_release(copy)


def test_another_schema_is_reported_with_both_values(copy: Path) -> None:
    rewrite(copy, lambda m: m.update(schema_hash="0" * 64))
    with pytest.raises(
        ReleaseError, match=r"its feature schema is 0{64} \(\d+ features\), that of this version is [0-9a-f]{64} "
    ):
        load_release(copy)


def test_a_release_without_a_tokenizer_version_is_served_if_its_words_are_read_as_before(copy: Path) -> None:
    """Releases made before version 2 do not have the field, and their IDs do not cover it."""
    rewrite(copy, lambda m: m.pop("tokens"))
    assert b"tokens" not in (copy / "manifest.json").read_bytes()
    assert load_release(copy).items.words is not None


@pytest.mark.parametrize("title", ["红木椅", "लकड़ी", "كرسي"])
def test_a_release_whose_words_were_split_in_another_way_is_refused(tmp_path: Path, title: str) -> None:
    items = planted_items()
    catalogue = replace(items.catalogue, titles=[title, *list(items.catalogue.titles)[1:]])
    vectors = (items.vectors.code * items.vectors.scale[:, None]).astype(np.float32)
    items = replace(items, catalogue=catalogue, words=Vocabulary.build(catalogue, vectors))
    release = publish(tmp_path, items=items)
    assert load_release(release).manifest.tokens == tokens.VERSION
    rewrite(release, lambda m: m.pop("tokens"))
    with pytest.raises(ReleaseError, match=r"its words, such as '.+', were split by version 1 of the tokenizer"):
        load_release(release)


def test_a_release_of_a_later_tokenizer_is_refused(copy: Path) -> None:
    rewrite(copy, lambda m: m.update(tokens=tokens.VERSION + 1))
    with pytest.raises(ReleaseError, match=r"split by version 3 of the tokenizer, this version has 2: serve it with"):
        load_release(copy)


def test_an_array_of_another_shape_is_reported_with_both_shapes(copy: Path) -> None:
    rewrite(copy, lambda m: m.update(dimension=8))
    with pytest.raises(ReleaseError, match=r"vector_code\.npy: int8\[21, 16\], expected int8\[21, 8\]"):
        load_release(copy)


def resave(path: Path, name: str, array: np.ndarray, allow_pickle: bool = False) -> None:
    file = path / "arrays" / f"{name}.npy"
    np.save(file, array, allow_pickle=allow_pickle)
    from serving.release.release import _entry

    entry = _entry(file)
    rewrite(path, lambda m: m["files"].update({f"arrays/{name}.npy": {"bytes": entry.bytes, "sha256": entry.sha256}}))


def test_an_array_with_indices_out_of_range_is_refused(copy: Path) -> None:
    """Compiled code would read out of bounds."""
    category = np.load(copy / "arrays" / "category.npy")
    category[0] = 99
    resave(copy, "category", category)
    with pytest.raises(ReleaseError, match=r"category\.npy: holds 0 to 99, expected 0 to 2: rebuild the release"):
        load_release(copy)


def test_segments_with_another_number_of_factors_are_refused(copy: Path) -> None:
    resave(copy, "segment_centre", np.zeros((3, 5), np.float32))
    with pytest.raises(ReleaseError, match=r"segment_centre\.npy: 5 columns, expected 4 as in factors\.npy: rebuild"):
        load_release(copy)


def test_a_release_written_before_segments_existed_has_none(copy: Path) -> None:
    """Its ranker was trained without them."""

    def without_segments(manifest: dict[str, Any]) -> None:
        for part in ("centre", "log_share"):
            del manifest["files"][f"arrays/segment_{part}.npy"]

    rewrite(copy, without_segments)
    assert len(load_release(copy).items.segments.centre) == 0


def test_a_release_keeps_its_sequence_model_to_the_bit_and_one_without_is_as_before(tmp_path: Path) -> None:
    """Releases made before there were sequence models have no features of them, so they still load."""
    items = with_sequence(planted_items())
    loaded = load_release(publish(tmp_path, items=items)).items
    clicked = np.arange(4, dtype=np.int32)
    history = History(clicked, np.full(4, Kind.CLICK, np.int8), CUT_OFF - np.arange(4.0), *EMPTY[3:])
    every = np.arange(-1, 20, dtype=np.int32)
    expected = rows(items, history, every, CUT_OFF + 1)
    np.testing.assert_array_equal(rows(loaded, history, every, CUT_OFF + 1), expected)
    place = names(items).index("sequence_cosine")
    assert np.isnan(expected[0, place : place + 3]).all()  # the unknown item
    assert np.isfinite(expected[1:, place : place + 3]).all()
    assert np.isnan(rows(items, EMPTY, every, CUT_OFF + 1)[:, place]).all()

    before = load_release(publish(tmp_path))
    assert before.items.sequence is None
    assert not [name for name in (*names(before.items), *before.manifest.files) if "sequence" in name]


def test_a_sequence_model_with_a_weight_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    release = publish(tmp_path, items=with_sequence(planted_items()))
    resave(release, "sequence_weights", np.full(WEIGHTS, np.inf, np.float32))
    with pytest.raises(ReleaseError, match=r"sequence_weights\.npy: a value is not finite: rebuild the release"):
        load_release(release)


def test_a_new_item_is_placed_in_sequences_by_its_text() -> None:
    """The rows of the release stay as they are; an item whose text is not encoded yet has no place."""
    items = with_sequence(planted_items())
    model = items.sequence
    assert model is not None
    vector = np.eye(16, dtype=np.float32)[3]
    written = {name: ItemFields(CUT_OFF + 1, {"title": name}) for name in ("new", "unread")}
    n = len(items.catalogue)
    found = Overlay(written, {"new": vector}).over(items, items.state).sequence
    assert found is not None
    np.testing.assert_array_equal(found.items.code[:n], model.items.code[:n])
    np.testing.assert_array_equal(found.items.code[n], Vectors.quantise(model.embed(vector[None])).code[0])
    assert np.isnan(found.items.scale[n + 1 :]).all()
    assert len(found.items.scale) == n + 3


def test_a_pickled_array_is_refused_without_loading_it(copy: Path) -> None:
    resave(copy, "prior", np.array([print], object), allow_pickle=True)
    with pytest.raises(ReleaseError, match=r"prior\.npy is not a valid array: .*[Oo]bject"):
        load_release(copy)


def test_releases_are_listed_newest_first_and_broken_ones_last_with_the_reason(tmp_path: Path, model: str) -> None:
    old = publish(tmp_path, model_text=model)
    new = publish(tmp_path, model_text=model, created_at=CUT_OFF + 86400)
    (tmp_path / "broken").mkdir()
    (tmp_path / ".making-x").mkdir()
    listed = list_releases(tmp_path)
    assert [r.path for r in listed] == [new, old, tmp_path / "broken"]
    assert "is not a release" in listed[2].problem
    assert list_releases(tmp_path / "nowhere") == []


def test_a_release_scores_by_the_linear_model_it_was_written_with_also_beside_new_items(tmp_path: Path) -> None:
    """40 users chose items of one colour. To the bit; a new item has a score of 0, and moves no other."""
    chosen = [(60.0 * k, k, item, Kind.CLICK, -1) for k in range(40) for item in range(k % 2, 20, 2)]
    linear = Linear.build(make_events(chosen, n_users=40), 20, START + 9e5)
    loaded = load_release(publish(tmp_path, items=replace(planted_items(), linear=linear))).items
    assert loaded.linear is not None
    written = {"new": ItemFields(CUT_OFF, {"title": "A new thing"})}
    extended = Overlay(written, {}).over(loaded, loaded.state).linear
    assert extended is not None
    every, item, at = np.arange(20, dtype=np.int32), np.array([3, 8], np.int32), np.array([CUT_OFF, CUT_OFF - 9])
    expected = linear.scores(every, item, at)
    assert expected.any()
    np.testing.assert_array_equal(loaded.linear.scores(every, item, at), expected)
    np.testing.assert_array_equal(extended.scores(np.append(every, 20).astype(np.int32), item, at)[:, :20], expected)
    assert not extended.scores(np.array([20, -1], np.int32), item, at).any()
    np.testing.assert_array_equal(extended.best(item, at)[0], linear.best(item, at)[0])
