"""Reading of item texts in nightly runs: new texts only, within a time limit if there is one, on any catalogue."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from offline.config.configuration import Config, load
from offline.config.publication import RetentionConfig
from offline.config.simulation import SimulateConfig
from offline.nightly import retention
from offline.nightly.night import Night
from offline.simulation.dataset import simulate
from offline.training import VectorStore
from tests.bench.second_night import change_descriptions, run, same_vectors
from tests.tiny_encoder import tiny_encoder

END = datetime(2024, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoder(tmp_path_factory.mktemp("model") / "tiny")


def shop(workspace: Path, model: Path, items: int, days: int = 6, **encoder: object) -> Config:
    """A workspace with a simulated log."""
    size = SimulateConfig(items=items, users=80, days=days, new_items_per_day=0, end=END)
    simulate(size, workspace / "data")
    return load(None, workspace=workspace, ranker={"trees": 5}, encoder={"model": str(model), **encoder})


def rows_in_store(config: Config, night: Night) -> int:
    return VectorStore(config.vector_store).rows(night.artefacts.json("texts.json")["base_fingerprint"])


def words_read(night: Night) -> int:
    return int(np.isfinite(night.artefacts.array("words.npy")).all(axis=1).sum())


def test_the_second_night_reads_changed_texts_only_and_has_the_vectors_of_one_from_nothing(
    tmp_path: Path, model: Path
) -> None:
    """2 of 200 descriptions are changed: two more texts are in the store, which also has the words of the catalogue.

    Bit for bit, also after fine-tuning.
    """
    config = shop(tmp_path / "shop", model, 200, epochs=1)
    first = run(config)
    assert first.known == 200 + words_read(Night(config))
    assert change_descriptions(config.data / "items.parquet", 0.01) == 2
    second = run(config)
    assert second.known == first.known + 2
    nothing = config.model_copy(update={"workspace": tmp_path / "nothing", "vectors": (tmp_path / "v").as_uri()})
    nothing.workspace.mkdir()
    nothing.data.symlink_to(config.data)
    third = run(nothing)
    assert third.known == first.known
    assert same_vectors(second.directory, third.directory)


def test_what_is_not_read_in_time_has_no_vector_and_is_read_by_the_next_run(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One batch is read, also if there is no time."""
    config = shop(tmp_path, model, 150, epochs=1, read_s=1e-9)
    night = Night(config)
    night.run_to("encoder")
    unread = night.artefacts.json("encoder.json")["unread"]
    assert 0 < unread < 150
    assert (
        f"{unread} of 150 items have no text vector in this run: encoder.read_s is 1e-09 s" in capsys.readouterr().err
    )
    assert np.isnan(night.artefacts.vectors).all(axis=1).sum() == unread
    assert rows_in_store(config, night) == 150 - unread
    assert words_read(night) == 0, "they are read last"

    patient = config.model_copy(update={"encoder": config.encoder.model_copy(update={"read_s": None})})
    rest = Night(patient)
    rest.run_to("texts")
    assert rest.artefacts.json("texts.json")["unread"] == 0
    assert np.isfinite(rest.artefacts.zero_shot).all()
    assert rows_in_store(patient, rest) == 150 + words_read(rest)
    assert words_read(rest) == len(rest.artefacts.array("words.npy"))


def test_old_vectors_that_no_kept_run_uses_are_removed(tmp_path: Path, model: Path) -> None:
    """A text of the first run was changed in the second. Its vector goes with the first run's directory."""
    config = shop(tmp_path, model, 60)
    first = Night(config)
    first.run_to("texts")
    change_descriptions(config.data / "items.parquet", 1 / 60)
    second = Night(config)
    second.run_to("texts")
    kept = RetentionConfig(runs=1, vector_days=1)
    later = VectorStore(config.vector_store, lambda: 4e9)
    assert retention.remove_vectors(later, config.runs, kept) == 0
    assert retention.remove_runs(config.runs, second.run.directory, kept) == [first.run.directory.name]
    assert retention.remove_vectors(VectorStore(config.vector_store), config.runs, kept) == 0, "it is of today"
    assert retention.remove_vectors(later, config.runs, kept) == 1
    assert rows_in_store(config, second) == 60 + words_read(second)


@pytest.mark.slow
def test_reading_may_take_longer_than_the_training_budget(tmp_path: Path, model: Path) -> None:
    """With default settings, except for a training budget much shorter than the reading."""
    config = shop(tmp_path, model, 1_000, budget_s=0.05)
    night = Night(config)
    release = night()
    vectors = night.artefacts.zero_shot
    assert len(vectors) == 1_000 == len(release.items.catalogue.item_ids)
    assert np.isfinite(vectors).all()
    assert night.run.finished["texts"]["seconds"] > config.encoder.budget_s
