"""Parts of encoder training: projection, stages, adapters, encoding within the budget, and metric logs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from tests.text_encoder.test_text_encoder import CONFIG, NO_PROJECTION, TEXTS, minilm, planted, tiny
from text_encoder import scalars
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Encoder, HiddenLayer, load
from text_encoder.errors import EncoderError
from text_encoder.examples import Examples
from text_encoder.lora import LoraLinear, adapt, merge
from text_encoder.towers import UpperLayers
from text_encoder.train import fine_tune
from text_encoder.trainer import Data, Epoch, Trainer, _log_q

__all__ = ["minilm"]  # the fixture

WITH_HIDDEN_LAYER = CONFIG.model_copy(update={"hidden": 16})


def config(**changes: object) -> EncoderConfig:
    return CONFIG.model_copy(update=changes)


# --- the projection


def hidden_layer(width: int, seed: int = 0) -> HiddenLayer:
    draw = np.random.default_rng(seed)
    shapes = (384, width), (width,), (width, 384)
    return HiddenLayer(*(draw.normal(size=shape).astype(np.float32) for shape in shapes))


def test_a_projection_with_hidden_layer_is_its_formula_also_in_sentence_transformers(
    minilm: Encoder, tmp_path: Path
) -> None:
    """normalize(v @ M + relu(v @ inner + bias) @ outer)"""
    matrix = np.random.default_rng(1).normal(size=(384, 384)).astype(np.float32)
    inner, bias, outer = hidden_layer(5)
    v = minilm.encode(TEXTS[:4])
    expected = v @ matrix + np.maximum(v @ inner + bias, 0) @ outer
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    projected = minilm.projected(matrix, HiddenLayer(inner, bias, outer))
    np.testing.assert_allclose(projected.encode(TEXTS[:4]), expected, atol=1e-5)
    projected.save(tmp_path / "m")
    assert load(tmp_path / "m").fingerprint == projected.fingerprint
    reference = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS[:4], show_progress_bar=False)
    np.testing.assert_allclose(reference, expected, atol=1e-5)


def test_a_linear_projection_is_not_merged_into_one_with_a_hidden_layer(minilm: Encoder) -> None:
    once = minilm.projected(np.eye(384, dtype=np.float32), hidden_layer(5))
    matrix = np.random.default_rng(1).normal(size=(384, 384)).astype(np.float32)
    expected = once.encode(["green tea"]) @ matrix
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(once.projected(matrix).encode(["green tea"]), expected, atol=1e-5)


def test_a_hidden_layer_of_the_wrong_shape_or_not_finite_is_rejected_by_name(minilm: Encoder) -> None:
    eye, good = np.eye(384, dtype=np.float32), hidden_layer(5)
    with pytest.raises(ValueError, match=r"projection's outer has shape \(4, 384\), expected \(5, 384\)"):
        minilm.projected(eye, good._replace(outer=good.outer[:4]))
    with pytest.raises(ValueError, match="projection's bias"):
        minilm.projected(eye, good._replace(bias=np.full(5, np.nan, np.float32)))


def test_a_trained_hidden_layer_is_part_of_the_encoder(minilm: Encoder) -> None:
    result = fine_tune(minilm, TEXTS, planted(), WITH_HIDDEN_LAYER)
    assert result.epochs[result.best_epoch].ndcg_at_10 > 0.4
    np.testing.assert_allclose(result.vectors, result.encoder.encode(TEXTS), atol=1e-5)


# --- stages


def test_training_of_layers_starts_from_the_best_projection(minilm: Encoder) -> None:
    result = fine_tune(minilm, TEXTS, planted(), config(mode="last_layers", n_layers=1, epochs=3))
    assert [e.stage for e in result.epochs] == ["zero-shot"] + ["projection"] * 3 + ["last_layers"] * 3
    assert [e.epoch for e in result.epochs] == list(range(7))
    # With a learning rate of 2e-5, the first epoch of layers changes little from the best projection.
    best_projection = max(e.ndcg_at_10 for e in result.epochs[:4])
    assert result.epochs[4].ndcg_at_10 == pytest.approx(best_projection, abs=0.05)
    np.testing.assert_allclose(result.vectors, result.encoder.encode(TEXTS), atol=2e-3)


def test_the_projection_is_returned_if_training_layers_makes_it_worse(minilm: Encoder) -> None:
    projection = fine_tune(minilm, TEXTS, planted(), CONFIG)
    result = fine_tune(minilm, TEXTS, planted(), config(mode="last_layers", n_layers=1, layer_learning_rate=0.5))
    assert result.best_epoch == projection.best_epoch
    assert result.encoder.fingerprint == projection.encoder.fingerprint
    np.testing.assert_array_equal(result.vectors, projection.vectors)


def layers_trainer(minilm: Encoder, examples: Examples, **changes: object) -> Trainer:
    tower = UpperLayers(minilm, torch.from_numpy(np.nan_to_num(minilm.encode(TEXTS))), TEXTS, n_layers=1)
    data = Data(examples, examples, torch.ones(len(TEXTS), dtype=torch.bool))
    return Trainer(tower, data, config(**changes), "last_layers", Epoch(0, "zero-shot", 0, 0, 0, 0, 0), 1, None)


def test_each_engaged_item_is_in_one_step_per_epoch_and_each_step_uses_all_examples(minilm: Encoder) -> None:
    part = tiny([[0, 1], [2, -1], [1, -1], [3, 0]], [4, 1, 0, 2], [0, 1, 2, 3], [[-1]] * 4)
    steps = layers_trainer(minilm, part, batch_texts=2, batch_size=2)._steps(np.random.default_rng(0))
    items = [step.items for step in steps if step.items is not None]
    assert [len(i) for i in items] == [2, 2, 1]
    assert len(steps) == 3
    assert sorted(np.concatenate(items).tolist()) == [0, 1, 2, 3, 4]
    for step in steps:
        assert [len(batch) for batch in step.batches] == [2, 2]
        assert sorted(np.concatenate(step.batches).tolist()) == [0, 1, 2, 3]


def test_a_step_on_texts_backpropagates_the_mean_gradient_of_its_batches(
    minilm: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two batches and three items, two of them in the step: each gets half of its summed gradients."""
    part = tiny([[0, -1], [1, -1]], [1, 2], [0, 1], [[-1]] * 2)
    trainer = layers_trainer(minilm, part, random_negatives=0, skipped_weight=0.0)
    received: dict[int, np.ndarray] = {}

    def backward(rows: np.ndarray, gradient: torch.Tensor) -> None:
        received.update(zip(rows.tolist(), gradient.numpy(), strict=True))

    monkeypatch.setattr(trainer.tower, "backward", backward)
    gradients = {0: np.full(2, 2.0), 1: np.full(2, 4.0), 2: np.full(2, 6.0)}

    def gradient(rows: np.ndarray, _: object) -> tuple[np.ndarray, torch.Tensor, float]:
        items = np.array([0, 1]) if rows[0] == 0 else np.array([1, 2])
        return items, torch.from_numpy(np.stack([gradients[i] for i in items.tolist()])), float(rows[0])

    monkeypatch.setattr(trainer, "_gradient", gradient)
    batches = [np.array([0]), np.array([1])]
    mean_loss = trainer._backward_through_texts(batches, np.array([1, 0]), np.random.default_rng(0))
    assert {item: row.tolist() for item, row in received.items()} == {0: [1, 1], 1: [4, 4]}  # 2 / 2 and (4 + 4) / 2
    assert mean_loss == 0.5


def test_log_q_is_the_log_probability_of_being_a_candidate_minus_a_share_of_log_popularity() -> None:
    part = tiny([[0]] * 4, [1, 1, 1, 2], [0, 1, 2, 3], [[-1]] * 4)
    usable = torch.ones(4, dtype=torch.bool)
    every = config(random_negatives=4, log_q=1.0)
    np.testing.assert_allclose(_log_q(part, usable, every, batch_size=2), np.zeros(4), atol=1e-6)  # all are candidates
    targets_only = config(random_negatives=0, log_q=1.0)
    # Item 1 is the target of three of four examples, so it is in a batch of two with probability 1 - (1/4)^2.
    expected = np.log([1e-9, 1 - (1 / 4) ** 2, 1 - (3 / 4) ** 2, 1e-9])
    np.testing.assert_allclose(_log_q(part, usable, targets_only, batch_size=2), expected, rtol=1e-5)
    half = every.model_copy(update={"log_q": 0.5})
    # Popularity: the counts (0, 3, 1, 0), each plus 1, divided by 8.
    np.testing.assert_allclose(
        _log_q(part, usable, half, batch_size=2), -0.5 * np.log(np.array([1, 4, 2, 1]) / 8), rtol=1e-5
    )


# --- adapters


def test_an_adapter_has_no_effect_before_training_and_merging_does_not_change_outputs() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Sequential(torch.nn.Linear(4, 3, bias=False)))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    before, names = model(x), list(model.state_dict())
    trained = adapt(model, rank=2, seed=0)
    assert sorted(trained) == ["0.down", "0.up", "1.0.down", "1.0.up"]
    torch.testing.assert_close(model(x), before)
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.3
    changed = model(x)
    assert not torch.allclose(changed, before)
    merge(model)
    torch.testing.assert_close(model(x), changed)
    assert list(model.state_dict()) == names


def test_adapters_are_trained_and_merged_and_other_layers_do_not_change(minilm: Encoder) -> None:
    changes: dict[str, Any] = {"mode": "lora", "lora_rank": 4, "epochs": 3, "layer_learning_rate": 1e-2}
    result = fine_tune(minilm, TEXTS, planted(), config(**NO_PROJECTION | changes))
    assert result.epochs[result.best_epoch].ndcg_at_10 > result.epochs[0].ndcg_at_10 + 0.05
    assert not any(isinstance(module, LoraLinear) for module in result.encoder.model.modules())
    np.testing.assert_allclose(result.vectors, result.encoder.encode(TEXTS), atol=2e-3)
    before, after = minilm.model.state_dict(), result.encoder.model.state_dict()
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split("layer.")[1].split(".")[0] for name in changed} == {"4", "5"}


# --- the vectors that training starts from


def test_an_item_without_a_vector_is_treated_as_one_without_text(minilm: Encoder) -> None:
    """Its text was not read: it has no vector, and other vectors are those of a catalogue in which it has no text."""
    vectors, texts = minilm.encode(TEXTS), [*TEXTS]
    vectors[9], texts[9] = np.nan, ""
    unread = fine_tune(minilm, TEXTS, planted(), config(epochs=2), zero_shot=vectors)
    without = fine_tune(minilm, texts, planted(), config(epochs=2))
    assert np.isnan(unread.vectors[9]).all()
    np.testing.assert_array_equal(unread.vectors, without.vectors)


# --- logging of metrics


def test_crc32c_matches_the_standard() -> None:
    """RFC 3720 gives 0xE3069283 for "123456789". The mask rotates it right by 15 bits and adds 0xa282ead8."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert scalars._masked_crc(b"123456789") == masked.to_bytes(4, "little")


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="needs tensorboard, which is not installed"
)


@needs_tensorboard
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_can_read_the_logged_metrics(minilm: Encoder, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result = fine_tune(minilm, TEXTS, planted(), CONFIG, tmp_path)
    read_back = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(read_back.Tags()["scalars"]) == ["examples/s", "loss", "ndcg@10", "recall@50"]
    quality = read_back.Scalars("ndcg@10")
    assert [event.step for event in quality] == [epoch.epoch for epoch in result.epochs]
    assert [event.value for event in quality] == pytest.approx([epoch.ndcg_at_10 for epoch in result.epochs])


def test_nothing_is_logged_without_a_directory_or_with_log_to_none(minilm: Encoder, tmp_path: Path) -> None:
    fine_tune(minilm, TEXTS, planted(), config(log_to="none", epochs=1), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert isinstance(scalars.scalars("tensorboard", None, {}), scalars.NoScalars)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_reported_before_any_text_is_encoded(
    minilm: Encoder, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(EncoderError, match=f"log_to is '{package}', but.*`pip install {package}`"):
        fine_tune(minilm, TEXTS, planted(), config(log_to=package), on_progress=lambda *_: pytest.fail("encoded"))


def test_a_tracker_that_does_not_start_is_reported_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise RuntimeError("no API key configured")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    with pytest.raises(EncoderError, match=r"wandb could not start a run \(RuntimeError: no API key configured\)"):
        scalars.scalars("wandb", None, {})


def test_weights_and_biases_logs_each_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )

    def init(**settings: Any) -> SimpleNamespace:
        calls.append(settings)
        return run

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    log = scalars.scalars("wandb", tmp_path, {"epochs": 3})
    log.add(1, {"ndcg@10": 0.5})
    log.close()
    started = {"project": "shelfwise", "config": {"epochs": 3}, "dir": str(tmp_path)}
    assert calls == [started, (1, {"ndcg@10": 0.5}), "finished"]


def test_mlflow_logs_each_epoch_with_valid_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    fake = SimpleNamespace(
        set_experiment=calls.append,
        start_run=lambda: calls.append("started"),
        log_params=calls.append,
        log_metrics=lambda values, step: calls.append((step, values)),
        end_run=lambda: calls.append("ended"),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    log = scalars.scalars("mlflow", None, {"epochs": 3})
    log.add(1, {"ndcg@10": 0.5})
    log.close()
    assert calls == ["shelfwise", "started", {"epochs": 3}, (1, {"ndcg_at_10": 0.5}), "ended"]
