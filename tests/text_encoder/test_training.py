"""What training is made of: stages, adapters, warm-up, reading within a budget, and the log of its numbers."""

from __future__ import annotations

import copy
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from tests.text_encoder.test_text_encoder import CONFIG, NO_PROJECTION, TEXTS, minilm, planted, tiny
from text_encoder import scalars, texts
from text_encoder.config import EncoderConfig
from text_encoder.encoder import Bend, Encoder, load
from text_encoder.examples import Examples
from text_encoder.lora import Adapted, adapt, merge
from text_encoder.texts import BudgetSpent, encode_texts
from text_encoder.towers import UpperLayers
from text_encoder.train import fine_tune
from text_encoder.trainer import Clock, Data, Epoch, Trainer, _log_q
from text_encoder.warm_up import hide

__all__ = ["minilm"]  # the fixture

HIDDEN = CONFIG.model_copy(update={"hidden": 16})


def config(**changes: object) -> EncoderConfig:
    return CONFIG.model_copy(update=changes)


# --- the projection


def bend(width: int, seed: int = 0) -> Bend:
    draw = np.random.default_rng(seed)
    shapes = (384, width), (width,), (width, 384)
    return Bend(*(draw.normal(size=shape).astype(np.float32) for shape in shapes))


def test_a_bent_projection_is_the_formula_to_us_and_to_sentence_transformers(minilm: Encoder, tmp_path: Path) -> None:
    """normalize(v @ M + relu(v @ inner + bias) @ outer)"""
    matrix = np.random.default_rng(1).normal(size=(384, 384)).astype(np.float32)
    inner, bias, outer = bend(5)
    v = minilm.encode(TEXTS[:4])
    expected = v @ matrix + np.maximum(v @ inner + bias, 0) @ outer
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    bent = minilm.projected(matrix, Bend(inner, bias, outer))
    np.testing.assert_allclose(bent.encode(TEXTS[:4]), expected, atol=1e-5)
    bent.save(tmp_path / "m")
    assert load(tmp_path / "m").fingerprint == bent.fingerprint
    theirs = SentenceTransformer(str(tmp_path / "m"), device="cpu").encode(TEXTS[:4], show_progress_bar=False)
    np.testing.assert_allclose(theirs, expected, atol=1e-5)


def test_a_projection_upon_a_bent_one_is_not_folded_into_it(minilm: Encoder) -> None:
    once = minilm.projected(np.eye(384, dtype=np.float32), bend(5))
    matrix = np.random.default_rng(1).normal(size=(384, 384)).astype(np.float32)
    expected = once.encode(["green tea"]) @ matrix
    expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(once.projected(matrix).encode(["green tea"]), expected, atol=1e-5)


def test_a_bend_of_another_shape_or_that_is_not_finite_is_refused_by_name(minilm: Encoder) -> None:
    eye, good = np.eye(384, dtype=np.float32), bend(5)
    with pytest.raises(ValueError, match=r"projection's outer of shape \(4, 384\)"):
        minilm.projected(eye, good._replace(outer=good.outer[:4]))
    with pytest.raises(ValueError, match="projection's bias"):
        minilm.projected(eye, good._replace(bias=np.full(5, np.nan, np.float32)))


def test_a_hidden_layer_learns_what_it_gives_to_the_encoder(minilm: Encoder) -> None:
    found = fine_tune(minilm, TEXTS, planted(), HIDDEN)
    assert found.epochs[found.best_epoch].ndcg_at_10 > 0.4
    np.testing.assert_allclose(found.vectors, found.encoder.encode(TEXTS), atol=1e-5)


# --- stages


def test_layers_start_from_what_the_projection_reached(minilm: Encoder) -> None:
    found = fine_tune(minilm, TEXTS, planted(), config(mode="last_layers", n_layers=1, epochs=3))
    assert [e.stage for e in found.epochs] == ["zero-shot"] + ["projection"] * 3 + ["last_layers"] * 3
    assert [e.epoch for e in found.epochs] == list(range(7))
    # At a rate of 2e-5 the first epoch of layers hardly moves: it stands where the projection's best stood.
    reached = max(e.ndcg_at_10 for e in found.epochs[:4])
    assert found.epochs[4].ndcg_at_10 == pytest.approx(reached, abs=0.05)
    np.testing.assert_allclose(found.vectors, found.encoder.encode(TEXTS), atol=2e-3)


def test_layers_that_make_it_worse_leave_the_projection_as_it_was(minilm: Encoder) -> None:
    alone = fine_tune(minilm, TEXTS, planted(), CONFIG)
    found = fine_tune(minilm, TEXTS, planted(), config(mode="last_layers", n_layers=1, layer_learning_rate=0.5))
    assert found.best_epoch == alone.best_epoch
    assert found.encoder.fingerprint == alone.encoder.fingerprint
    np.testing.assert_array_equal(found.vectors, alone.vectors)


def layers_trainer(minilm: Encoder, part: Examples, **changes: object) -> Trainer:
    tower = UpperLayers(minilm, torch.from_numpy(np.nan_to_num(minilm.encode(TEXTS))), TEXTS, trained=1)
    data = Data(part, part, torch.ones(len(TEXTS), dtype=torch.bool))
    return Trainer(tower, data, config(**changes), "last_layers", Epoch(0, "zero-shot", 0, 0, 0, 0, 0), 1, None)


def test_each_item_engaged_with_is_read_once_an_epoch_and_each_reading_hears_all_examples(minilm: Encoder) -> None:
    part = tiny([[0, 1], [2, -1], [1, -1], [3, 0]], [4, 1, 0, 2], [0, 1, 2, 3], [[-1]] * 4)
    steps = layers_trainer(minilm, part, batch_texts=2, batch_size=2)._steps(np.random.default_rng(0))
    assert [len(step.read) for step in steps] == [2, 2, 1]
    assert sorted(np.concatenate([step.read for step in steps]).tolist()) == [0, 1, 2, 3, 4]
    for step in steps:
        assert [len(batch) for batch in step.batches] == [2, 2]
        assert sorted(np.concatenate(step.batches).tolist()) == [0, 1, 2, 3]


def test_a_reading_hears_the_gradient_that_the_batches_have_on_average(minilm: Encoder) -> None:
    """Two batches, three items of which two are read: each gets half the sum of what the two say of it."""
    part = tiny([[0, -1], [1, -1]], [1, 2], [0, 1], [[-1]] * 2)
    trainer = layers_trainer(minilm, part, random_negatives=0, skipped_weight=0.0)
    told: dict[int, np.ndarray] = {}
    trainer.tower.backward = lambda rows, gradient: told.update(zip(rows.tolist(), gradient.numpy(), strict=True))
    says = {0: np.full(2, 2.0), 1: np.full(2, 4.0), 2: np.full(2, 6.0)}

    def gradient(rows: np.ndarray, _: object) -> tuple[np.ndarray, torch.Tensor, float]:
        items = np.array([0, 1]) if rows[0] == 0 else np.array([1, 2])
        return items, torch.from_numpy(np.stack([says[i] for i in items.tolist()])), float(rows[0])

    trainer._gradient = gradient
    mean_loss = trainer._read([np.array([0]), np.array([1])], np.array([1, 0]), np.random.default_rng(0))
    assert {item: row.tolist() for item, row in told.items()} == {0: [1, 1], 1: [4, 4]}  # 2 / 2 and (4 + 4) / 2
    assert mean_loss == 0.5


def test_log_q_takes_off_the_chance_of_being_a_candidate_and_what_popularity_is_left_to_others() -> None:
    part = tiny([[0]] * 4, [1, 1, 1, 2], [0, 1, 2, 3], [[-1]] * 4)
    usable = torch.ones(4, dtype=torch.bool)
    every = config(random_negatives=4, log_q=1.0)
    np.testing.assert_allclose(_log_q(part, usable, every, batch=2), np.zeros(4), atol=1e-6)  # all are candidates
    alone = config(random_negatives=0, log_q=1.0)
    # Item 1 is three targets of four: among two examples it is with chance 1 - (1/4)^2.
    expected = np.log([1e-9, 1 - (1 / 4) ** 2, 1 - (3 / 4) ** 2, 1e-9])
    np.testing.assert_allclose(_log_q(part, usable, alone, batch=2), expected, rtol=1e-5)
    half = every.model_copy(update={"log_q": 0.5})
    # Popularity with one added to each of the four counts: (0, 3, 1, 0) + 1 of 8.
    np.testing.assert_allclose(
        _log_q(part, usable, half, batch=2), -0.5 * np.log(np.array([1, 4, 2, 1]) / 8), rtol=1e-5
    )


# --- adapters


def test_an_adapter_changes_nothing_until_trained_and_merges_into_the_same_function() -> None:
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


def test_adapters_learn_and_leave_a_plain_model_with_other_layers_untouched(minilm: Encoder) -> None:
    changes: dict[str, Any] = {"mode": "lora", "lora_rank": 4, "epochs": 3, "layer_learning_rate": 1e-2}
    found = fine_tune(minilm, TEXTS, planted(), config(**NO_PROJECTION | changes))
    assert found.epochs[found.best_epoch].ndcg_at_10 > found.epochs[0].ndcg_at_10 + 0.05
    assert not any(isinstance(module, Adapted) for module in found.encoder.model.modules())
    np.testing.assert_allclose(found.vectors, found.encoder.encode(TEXTS), atol=2e-3)
    before, after = minilm.model.state_dict(), found.encoder.model.state_dict()
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.split("layer.")[1].split(".")[0] for name in changed} == {"4", "5"}


# --- warm-up


@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(3, 40))
@settings(max_examples=30, deadline=None)
def test_only_ordinary_words_are_hidden_and_what_is_not_chosen_stays(seed: int, n: int, length: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(10, 90, (n, length), generator=draw)
    special = torch.zeros_like(ids, dtype=torch.bool)
    special[:, [0, -1]] = True
    before = ids.clone()
    hidden, chosen = hide(ids, special, mask=5, words=100, draw=draw)
    assert not bool((chosen & special).any())
    assert torch.equal(hidden[~chosen], before[~chosen])
    assert torch.equal(ids, before)


def test_of_fifteen_in_a_hundred_words_eight_in_ten_are_masked() -> None:
    ids = torch.full((100, 1000), 50)
    hidden, chosen = hide(ids, torch.zeros_like(ids, dtype=torch.bool), 5, 100, torch.Generator().manual_seed(0))
    assert float(chosen.float().mean()) == pytest.approx(0.15, abs=0.005)
    assert float((hidden[chosen] == 5).float().mean()) == pytest.approx(0.8 + 0.1 / 100, abs=0.01)


def test_warm_up_changes_the_encoder_before_the_projection_and_not_the_one_given(
    minilm: Encoder, tmp_path: Path
) -> None:
    before = minilm.model[0].state_dict()["model.embeddings.word_embeddings.weight"].clone()
    once = config(warm_up_epochs=1, epochs=3)
    found = fine_tune(minilm, TEXTS, planted(), once, tmp_path)
    after = minilm.model[0].state_dict()["model.embeddings.word_embeddings.weight"]
    assert torch.equal(before, after)
    assert found.best_epoch > 0
    assert found.epochs[0] == fine_tune(minilm, TEXTS, planted(), config(mode="frozen")).epochs[0]
    np.testing.assert_allclose(found.vectors, found.encoder.encode(TEXTS), atol=1e-5)
    assert len(list(tmp_path.glob("warm_up-*.safetensors"))) == 1
    again = fine_tune(minilm, TEXTS, planted(), once, tmp_path)
    assert again.encoder.fingerprint == found.encoder.fingerprint


def test_a_model_that_knows_no_mask_is_refused(minilm: Encoder) -> None:
    model = copy.deepcopy(minilm.model)
    model.tokenizer.mask_token = None
    with pytest.raises(ValueError, match="warm_up_epochs: this model's tokenizer has no mask token"):
        fine_tune(Encoder(model, minilm.template, 16), TEXTS, planted(), config(warm_up_epochs=1))


# --- reading within the budget


def test_a_budget_too_small_to_read_the_catalogue_is_an_error_and_the_next_run_goes_on(
    minilm: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "_SMALLEST_PART", 12)
    monkeypatch.setattr(texts, "BLOCK", 4)
    poor = config(budget_s=1e-6)
    refusal = r"budget_s is 1e-06.*: 12 of 32 texts were read.*all need about.*raise encoder.budget_s"
    with pytest.raises(BudgetSpent, match=refusal):
        fine_tune(minilm, TEXTS, planted(), poor, tmp_path)
    with pytest.raises(BudgetSpent, match="24 of 32 texts"):
        fine_tune(minilm, TEXTS, planted(), poor, tmp_path)
    found = fine_tune(minilm, TEXTS, planted(), poor, tmp_path)  # the last part is read, and then there is no time
    assert found.stopped_by == "budget"
    np.testing.assert_array_equal(
        found.zero_shot,
        encode_texts(minilm, TEXTS, None, None, lambda _: None).with_missing(
            encode_texts(minilm, TEXTS, None, None, lambda _: None).vectors
        ),
    )


def test_texts_are_read_in_any_order_into_the_items_order(minilm: Encoder) -> None:
    texts = ["tea", "", "a much longer text about tea", "tea", "zoom lens"]
    found = encode_texts(minilm, texts, None, Clock(60.0), lambda _: None)
    np.testing.assert_allclose(found.with_missing(found.vectors), minilm.encode(texts), atol=1e-6)
    assert found.readable.tolist() == [True, False, True, True, True]


# --- the log


def test_crc32c_is_the_standards() -> None:
    """RFC 3720 gives 0xE3069283 for "123456789"; masked it is rotated right by 15 and 0xa282ead8 is added."""
    crc = 0xE3069283
    masked = ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    assert scalars._masked_crc(b"123456789") == masked.to_bytes(4, "little")


needs_tensorboard = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard, which reads the files, is not installed"
)


@needs_tensorboard
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_what_was_logged(minilm: Encoder, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = fine_tune(minilm, TEXTS, planted(), CONFIG, tmp_path)
    read_back = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(read_back.Tags()["scalars"]) == ["examples/s", "loss", "ndcg@10", "recall@50"]
    quality = read_back.Scalars("ndcg@10")
    assert [event.step for event in quality] == [epoch.epoch for epoch in found.epochs]
    assert [event.value for event in quality] == pytest.approx([epoch.ndcg_at_10 for epoch in found.epochs])


def test_without_a_directory_or_a_wish_nothing_is_written(minilm: Encoder, tmp_path: Path) -> None:
    fine_tune(minilm, TEXTS, planted(), config(log_to="none", epochs=1), tmp_path)
    assert not (tmp_path / "tensorboard").exists()
    assert isinstance(scalars.scalars("tensorboard", None, {}), scalars.Nowhere)


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_missing_package_is_named_before_anything_is_read(
    minilm: Encoder, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=f"log_to is '{package}', but.*`pip install {package}`"):
        fine_tune(minilm, TEXTS, planted(), config(log_to=package), on_progress=lambda *_: pytest.fail("read"))


def test_weights_and_biases_gets_each_epoch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[Any] = []
    run = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **kw: calls.append(kw) or run))
    log = scalars.scalars("wandb", tmp_path, {"epochs": 3})
    log.add(1, {"ndcg@10": 0.5})
    log.close()
    started = {"project": "shelfwise", "config": {"epochs": 3}, "dir": str(tmp_path)}
    assert calls == [started, (1, {"ndcg@10": 0.5}), "finished"]


def test_mlflow_gets_each_epoch_under_names_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
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
