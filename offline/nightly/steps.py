"""Steps of a nightly run: functions that read artefacts of earlier steps and write their own.

Checks, gate and publication have modules of their own. The computations are in `offline.data`, `offline.training` and
`offline.evaluation`. Encoders are imported by the steps that use them, since importing torch and the model libraries
takes several seconds: other steps, and runs that continue after them, do without.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pyarrow as pa

from features.arrays import F32
from features.log import Lists
from offline.data import WINDOWS, Windows, query_groups
from offline.evaluation import BASELINES, DEPTH, facts, outcomes, served_scores, systems
from offline.nightly.artefacts import Artefacts
from offline.nightly.list_source import split_both
from offline.runtime import DataError, OnProgress, console, split_evenly
from offline.training import (
    RowsJob,
    VectorStore,
    build_inverted_lists,
    encoders,
    fit_ranker,
    make_rows,
    sequence,
    with_unknown,
)
from ranker.calibration import fit_maps
from ranker.train import RankerConfig
from serving.release import MANIFEST, write_release
from text_encoder import multilingual
from text_encoder.config import AUTO, MINILM, MULTILINGUAL
from text_encoder.language import languages
from text_encoder.reading import WINDOW, read_texts
from text_encoder.scalars import check_package
from text_encoder.text import catalogue_texts

if TYPE_CHECKING:
    from text_encoder.encoder import Encoder

_PARENT = "parent.json"
_MOST_WORDS = 50_000
"""Number of words that are read by the encoder. The vectors of rarer words are those of their items."""
_MIN_CENTRED = 100
"""Number of items with text below which their mean is not subtracted: it would be that of a few texts."""


def split_windows(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `windows.json`, and announce the source of the lists if it was decided.

    Raises DataError if the log has no lists, or if the protocol does not fit their source.
    """
    inputs, protocol = a.inputs, a.inputs.config.windows.protocol
    if protocol == "leave-last-out" and inputs.is_logged:
        raise DataError("protocol leave-last-out needs rebuilt lists; set lists.source to rebuilt")
    if protocol == "given-lists" and not inputs.is_logged:
        raise DataError("protocol given-lists needs logged lists; set lists.source to logged")
    groups = query_groups.keys(inputs.lists())
    if inputs.is_logged and not len(groups):
        raise DataError("the log has no lists, only user actions; set lists.source to rebuilt or auto")
    if not len(groups):
        raise DataError("the log has no click, view, cart or purchase of an item in the catalogue; import a longer log")
    if inputs.list_source.notice:
        _announce(inputs.list_source.notice)
    if inputs.is_mixed:
        windows = split_both(groups, inputs.logged_keys, inputs.config)
    else:
        windows = Windows.split(groups.at, groups.user, inputs.config.windows)
    a.write_json("windows.json", vars(windows))


def read_item_texts(a: Artefacts, on_progress: OnProgress) -> None:
    """Encode the texts that the vector store lacks: `zero_shot.npy`, `words.npy`, `texts.json`,
    `text_keys.npy`."""
    from text_encoder.encoder import load

    inputs, config = a.inputs, a.inputs.config.encoder
    check_package(config.log_to)
    model = _choose_model(config.model, inputs.data.items)
    encoder = load(model, template=config.template, max_tokens=config.max_tokens)
    texts = catalogue_texts(encoder.template, inputs.data.items)
    encoder = encoder.capped(texts, config.token_percentile)
    engaged = inputs.data.events.item
    popularity = np.bincount(engaged[engaged >= 0], minlength=len(texts))
    vocabulary = a.vocabulary
    words = vocabulary.most_common(_MOST_WORDS) if encoder.is_plain else np.empty(0, np.int64)
    names = list(vocabulary.names)
    read = read_texts(
        encoder,
        [*texts, *(names[word] for word in words.tolist())],
        VectorStore(inputs.config.vector_store),
        order=np.append(np.argsort(-popularity, kind="stable"), len(texts) + np.arange(len(words))),
        limit_s=np.inf if config.read_s is None else config.read_s,
        on_progress=on_progress,
        announce=_announce,
        over_batches=inputs.engine.map,
        window=WINDOW * inputs.engine.parts,
    )
    of_items, of_words = np.split(read.vectors, [len(texts)])
    unread = sum(bool(text.strip()) for text, row in zip(texts, of_items, strict=True) if np.isnan(row[0]))
    if unread:
        _announce(
            f"{unread:,} of {len(texts):,} items have no text vector in this run: encoder.read_s is "
            f"{config.read_s:g} s, which ended before their texts were read. Later runs read them"
        )
    word_vectors = np.full((len(names), encoder.dimension), np.nan, np.float16)
    word_vectors[words] = of_words
    vectors, mean = _centred(encoder, of_items)
    a.save("zero_shot.npy", vectors)
    a.save("words.npy", word_vectors)
    a.save("text_keys.npy", np.frombuffer(b"".join(read.keys), np.uint8).reshape(-1, 16))
    a.write_json(
        "texts.json",
        {
            "model": model,
            "max_tokens": encoder.max_tokens,
            "base_fingerprint": encoder.base_fingerprint,
            "unread": unread,
            "mean": None if mean is None else mean.tolist(),
        },
    )


def _choose_model(model: str, items: pa.Table) -> str:
    """The model that the configuration names; for `auto`, the packaged one that fits the language of the catalogue."""
    if model != AUTO:
        return model
    found = languages(catalogue_texts("{title}. {description}", items))
    if found.is_english:
        return MINILM
    why = (
        f"{found.foreign:,} of {found.texts:,} item texts are not in English, so encoder.model {AUTO} "
        f"{{}} {MULTILINGUAL}"
    )
    if multilingual.is_installed():
        _announce(why.format("uses") + f"; set encoder.model to {MINILM} or another model if this is not wanted")
        return MULTILINGUAL
    _announce(
        why.format("would use")
        + f", which is not installed: run `pip install 'shelfwise[multilingual]'`. This run uses {MINILM}, which is "
        "trained on English"
    )
    return MINILM


def _centred(encoder: Encoder, vectors: F32) -> tuple[F32, F32 | None]:
    """The vectors without their mean, of unit length, and the mean.

    Unchanged, and None, for few items, and for an encoder with a projection of its own.
    """
    known = np.isfinite(vectors).all(axis=1)
    if known.sum() < _MIN_CENTRED or not encoder.is_plain:
        return vectors, None
    mean: F32 = vectors[known].mean(axis=0, dtype=np.float64).astype(np.float32)
    return encoder.centred(mean).from_base(vectors), mean


def _announce(message: str) -> None:
    console.print(message, markup=False, soft_wrap=True)


def train_encoders(a: Artefacts, on_progress: OnProgress) -> None:
    """Fine-tune the encoder over the log: `encoder/`, `vectors.npy`, `word_vectors.npy`, `encoder.json`."""
    from text_encoder.encoder import load

    inputs, config, read = a.inputs, a.inputs.config.encoder, a.json("texts.json")
    config = config.model_copy(update={"model": read["model"]})
    encoder = load(config.model, template=config.template, max_tokens=read["max_tokens"])
    if read["mean"] is not None:
        encoder = encoder.centred(np.array(read["mean"], np.float32))
    texts = catalogue_texts(encoder.template, inputs.data.items)
    events = inputs.data.events
    moments = encoders.refresh_moments(events, a.windows, config.refreshes)
    retention = inputs.config.serving.retention
    trained = encoders.train_encoders(
        encoder,
        texts,
        a.zero_shot,
        encoders.Words(list(a.vocabulary.names), a.array("words.npy")),
        events,
        moments,
        config,
        a.file("checkpoints"),
        on_progress,
        inputs.engine,
        retention,
    )
    trained.encoder.save(a.file("encoder"))
    a.save("vectors.npy", trained.vectors)
    a.save("word_vectors.npy", trained.word_vectors)
    a.write_json("encoder.json", {**trained.facts, "unread": read["unread"]})


def train_sequence_models(a: Artefacts, on_progress: OnProgress) -> None:
    """Train the sequence model after each training of the encoder: `sequence.npz`, which has none if it is off."""
    config, moments = a.inputs.config.sequence, a.json("encoder.json")["moments"]
    trained = sequence.train_models(
        a.inputs.data.events, a.array("vectors.npy", mapped=True), moments, config, on_progress
    )
    if short := [str(epochs) for _, epochs in trained if epochs < config.epochs]:
        _announce(
            f"the sequence model stopped after {', '.join(short)} of {config.epochs} epochs because of "
            f"sequence.budget_s = {config.budget_s:g}; raise it, or lower sequence.events_per_epoch"
        )
    a.save_sequence_models([model for model, _ in trained])


def make_query_groups(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `lists.npz`: the lists with gain from the start of the ranker window, logged or rebuilt."""
    inputs, config = a.inputs, a.inputs.config.lists
    parts = [(query_groups.keys([block]), inputs.are_logged(block)) for block in _lists_with_gain(a)]
    keys = query_groups.keys(part for part, _ in parts)
    # The few logged lists would be lost in a sample of both kinds.
    first = np.concatenate([are_logged for _, are_logged in parts]) if inputs.is_mixed else None
    numbers = a.windows.kept(keys, config.most, inputs.config.seed, first)
    groups = query_groups.select(_lists_with_gain(a), numbers)
    logged = inputs.are_logged(groups)
    if not logged.all():
        wanted, shown = (groups.take(np.flatnonzero(mask)) for mask in (~logged, logged))
        rebuilt = query_groups.rebuild_lists(a.replay, wanted, config.size, on_progress, inputs.engine)
        groups = query_groups.concat(query_groups.merge([rebuilt], shown))
    a.save_lists(inputs.with_columns(groups), inputs.are_logged(groups))


def _lists_with_gain(a: Artefacts) -> Iterator[Lists]:
    for block in a.inputs.lists():
        yield block.take(np.flatnonzero((block.at >= a.windows.ranker) & systems.lists_with_gain(block)))


def replay_rows(a: Artefacts, on_progress: OnProgress) -> None:
    """Replay the log into feature rows: `rows.npy`, `baselines.npy`, `warm.npy`."""
    lists, n, inputs = a.lists, len(a.lists), a.inputs
    rows = a.create_array("rows.npy", (lists.rows, len(a.replay.features)))
    tested, warm = a.windows.lists("test", lists), np.empty(n, bool)
    whole_catalogue = a.windows.protocol == "leave-last-out"
    job = RowsJob(a.replay, lists, tested, with_unknown(a.zero_shot), inputs.config.seed, whole_catalogue, a.logged)
    baselines = [np.empty((0, len(BASELINES), DEPTH), np.int32)]
    for block in inputs.engine.map(make_rows, job, split_evenly(lists.start, inputs.engine.parts)):
        end = block.first + len(block.warm)
        rows[lists.start[block.first] : lists.start[end]] = block.rows
        warm[block.first : end] = block.warm
        baselines.append(block.best)
        a.release_pages()
        on_progress(end, n)
    rows.flush()
    a.save("baselines.npy", np.concatenate(baselines))
    a.save("warm.npy", warm)


def ranker_config(a: Artefacts) -> RankerConfig:
    """The ranker settings of this run.

    Position debiasing is off if the ranker learns from rebuilt lists alone, which no user saw.
    """
    config = a.inputs.config.ranker
    if a.inputs.is_logged or a.logged[a.windows.lists("ranker", a.lists)].any():
        return config
    return config.model_copy(update={"position_debias": False})


def train_ranker(a: Artefacts, on_progress: OnProgress) -> None:
    """Train the ranker: `ranker.txt`, `before_refit.txt`, `ranker.json`, `valid_score.npy`."""
    config, features = ranker_config(a), a.replay.features
    names = [f.name for f in features]
    learned, valid = a.window_rows("ranker"), a.window_rows("validation")
    for window, part in (("ranker", learned), ("validation", valid)):
        if not part.lists.gain.any():
            raise DataError(
                f"no list of the {window} window offers an item that its user chose ({len(part.lists):,} lists), so "
                "there is no order to learn; import a longer log, or raise lists.size"
            )
    trained, valid_score = fit_ranker(
        learned,
        valid,
        a.window_rows("ranker", "validation") if config.refit else None,
        names,
        config,
        engine=a.inputs.engine,
        on_progress=on_progress,
    )
    a.file("ranker.txt").write_text(trained.model_text, "utf-8")
    a.file("before_refit.txt").write_text(trained.before_refit, "utf-8")
    a.save("valid_score.npy", valid_score)
    about = {f.name: f.about for f in features}
    a.write_json(
        "ranker.json",
        {
            "trees": trained.best_iteration,
            "curve": trained.valid_curve,
            "refit": config.refit,
            "lists": trained.lists,
            "validation_lists": trained.valid_lists,
            "importance": [[name, about[name], gain] for name, gain in trained.importance.items()],
        },
    )


def estimate_probabilities(a: Artefacts, on_progress: OnProgress) -> None:
    """Fit the probabilities of outcomes: `calibration.json`; score test lists to check them: `scored.npz`.

    Of logged lists, with and without gain, at most `outcomes.MOST` per window are replayed. Of rebuilt lists, all have
    gain, and the rows are those of the ranker.
    """
    if a.judged_kind == "rebuilt":
        valid, tested = _scored_rows(a)
    else:
        valid, tested = _scored_lists(a, on_progress)
    maps = fit_maps(valid.score, valid.lists.gain) if len(valid.lists) else {}
    a.write_json("calibration.json", {"maps": msgspec.to_builtins(maps), "lists": len(valid.lists)})
    a.save_scored(tested)


def _scored_rows(a: Artefacts) -> tuple[outcomes.ScoredLists, outcomes.ScoredLists]:
    """The validation and the test lists, from the feature rows of the run."""
    numbers = a.windows.lists("validation", a.lists)
    rows, tested, test_numbers = a.window_rows("test")
    return (
        outcomes.ScoredLists(a.lists.take(numbers), a.served_valid_score(), a.warm[numbers]),
        outcomes.ScoredLists(tested, served_scores(a.published, rows, tested), a.warm[test_numbers]),
    )


def _scored_lists(a: Artefacts, on_progress: OnProgress) -> tuple[outcomes.ScoredLists, outcomes.ScoredLists]:
    """A sample of the logged lists of the validation and the test window, replayed."""
    inputs, keys = a.inputs, query_groups.keys(a.inputs.short_lists())
    chosen = [outcomes.thin(a.windows.lists(window, keys)) for window in ("validation", "test")]
    lists = inputs.with_columns(query_groups.select(inputs.short_lists(), np.sort(np.concatenate(chosen))))
    scored = outcomes.score_shown(a.replay, lists, (a.published_before_refit, a.published), a.windows.test, on_progress)
    is_tested = lists.at >= a.windows.test
    return scored.take(np.flatnonzero(~is_tested)), scored.take(np.flatnonzero(is_tested))


def make_release(a: Artefacts, on_progress: OnProgress) -> None:
    """Write the release directory and `release.json`."""
    inputs, encoder, evaluation, vectors = a.inputs, a.json("encoder.json"), a.json("evaluation.json"), a.vectors
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    inverted = build_inverted_lists(with_unknown(vectors), inputs.config.seed)
    path = write_release(
        inputs.config.releases,
        items=replace(a.replay.items_at(inputs.cut_off), inverted=inverted),
        model_text=a.published_text,
        simple_order=a.simple_order,
        item_columns=inputs.data.items.append_column("embedding", embedding),
        encoder_dir=a.file("encoder"),
        cut_off=inputs.cut_off,
        window=window_facts(a),
        metrics={s: by["all"][systems.PRIMARY] for s, by in evaluation["systems"].items()},
        parent=_parent(a),
        # The time of the data, not of the clock, so that the same data give the same bytes.
        created_at=inputs.cut_off,
        encoder_fingerprint=encoder["fingerprint"],
        retention=a.replay.retention,
        calibration=a.maps,
    )
    a.write_json("release.json", {"path": str(path.resolve()), "id": path.name})


def is_released(a: Artefacts) -> bool:
    """True if the release of this run still exists."""
    return (a.release_path / MANIFEST).is_file()


def _parent(a: Artefacts) -> str | None:
    """The release that was live when this run first made its own.

    Stored in a file, so that making the release again after it went live gives the same bytes.
    """
    path: Path = a.file(_PARENT)
    if not path.exists():
        a.write_json(_PARENT, {"parent": a.inputs.live})
    parent: str | None = a.json(_PARENT)["parent"]
    return parent


def window_facts(a: Artefacts) -> dict[str, Any]:
    """Start (`from`) and end (`to`) of each window, ISO 8601, and its number of lists (`lists`).

    With logged and rebuilt lists, also the number of logged ones (`logged`). Of the test window, the kind of lists that
    the figures are of (`judged`).
    """
    of_both = a.inputs.is_mixed
    # The last encoder and a refit ranker are trained on all data before the test window, not only on their own.
    until = {"encoder": a.json("encoder.json")["moments"][-1]}
    if a.inputs.config.ranker.refit:
        until["ranker"] = a.windows.bounds("validation")[1]
    return {
        name: {
            "from": facts.iso(a.windows.bounds(name)[0]),
            "to": facts.iso(until.get(name, a.windows.bounds(name)[1])),
            "lists": len(a.windows.lists(name, a.lists)) if name != "encoder" else None,
            **(
                {"logged": int(a.logged[a.windows.lists(name, a.lists)].sum())} if of_both and name != "encoder" else {}
            ),
            **({"judged": a.judged_kind} if name == "test" else {}),
        }
        for name in WINDOWS
    }
