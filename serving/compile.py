"""Compiles all kernels of the service for named processor levels: `python -m serving.compile FOLDER`.

A made-up release is served in process, with every kind of request, and the signatures of the kernels this calls are
compiled for each level. No release, Redis or packages of the nightly run are needed, so the image can do it when it is
built. The machine need not have a level to compile for it. `serving/kernels.py` uses the result.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving import kernels

Signatures = list[tuple[str, str, list[Any]]]
"""(module, kernel, types of its arguments in each call), the types as numba's."""

_CUT_OFF = 1_700_000_000.0
_ITEMS, _DIMENSION = 24, 16


def compile_kernels(folder: Path, levels: list[str]) -> int:
    """Compile the kernels for these levels into a new or empty folder; returns their number per level.

    Raises KernelsError if the folder holds files, or a level is unknown.
    """
    if unknown := sorted(set(levels) - set(kernels.LEVELS)):
        raise kernels.KernelsError(f"unknown level {unknown[0]!r}: choose from {', '.join(kernels.LEVELS)}")
    if folder.exists() and any(folder.iterdir()):
        raise kernels.KernelsError(f"{folder} is not empty: name a new folder, or empty this one")
    folder.mkdir(parents=True, exist_ok=True)
    runs = [level for level in kernels.supported() if level in levels][:1]
    with tempfile.TemporaryDirectory() as scratch:
        # Kernels are executed only at a level that this processor has.
        called = _in_new_process(runs[0], folder, _call) if runs else _in_new_process(None, Path(scratch), _call)
    for level in levels:
        if level not in runs:
            _in_new_process(level, folder, _compile, called)
    (folder / kernels.MANIFEST).write_text(kernels.manifest(levels), "utf-8")
    return sum(len(types) for _, _, types in called)


def _in_new_process(level: str | None, cache: Path, function: Any, *arguments: Any) -> Any:
    """The result of a function in a new process that compiles for a level, or for this processor if None."""
    before = dict(os.environ)
    for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"):
        os.environ.pop(name, None)
    os.environ.update({"NUMBA_CACHE_DIR": str(cache), **({} if level is None else kernels.environment(level))})
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            return process.submit(function, *arguments).result()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _call() -> Signatures:
    """Call every kernel of the service, and return the signatures they were called with."""
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(_serve(_write(Path(root))))
    return _signatures()


def _signatures() -> Signatures:
    from numba.core.registry import CPUDispatcher

    return [
        (name, kernel, [signature.args for signature in found.nopython_signatures])
        for name, module in sorted(sys.modules.items())
        if name.split(".")[0] in ("features", "ranker", "serving")
        for kernel, found in sorted(vars(module).items())
        if isinstance(found, CPUDispatcher) and found.py_func.__module__ == name and found.signatures
    ]


def _compile(called: Signatures) -> None:
    for module, kernel, signatures in called:
        dispatcher = getattr(sys.modules.get(module) or __import__(module, fromlist=[kernel]), kernel)
        for types in signatures:
            dispatcher.compile(types)


def _write(root: Path) -> Path:
    """Write a made-up release, with every array that a release can have."""
    import numpy as np
    import pyarrow as pa

    from features.catalogue import Catalogue
    from features.companions import Companions
    from features.decay import ItemState
    from features.neighbours import Neighbours
    from features.segments import Segments
    from features.sequence import WEIGHTS, WIDTH, SequenceModel, tower_size
    from features.table import Items, names
    from features.text.inverted_lists import InvertedLists
    from features.text.vectors import Vectors
    from features.text.vocabulary import Vocabulary
    from serving.release import write_release

    rng, n = np.random.default_rng(0), _ITEMS
    vectors = rng.normal(size=(n + 1, _DIMENSION)).astype(np.float32)
    vectors[n] = np.nan
    codes = np.append(np.arange(n) % 2, 2).astype(np.int32)
    catalogue = Catalogue(
        item_ids=[f"item-{i:02d}" for i in range(n)],
        titles=[f"Item {i}" for i in range(n)],
        price=np.append(rng.uniform(1, 9, n), np.nan),
        category=codes,
        category_names=["a", "b"],
        brand=codes,
        brand_names=["x", "y"],
        available_from=np.append(np.full(n, _CUT_OFF - 9e6), np.nan),
        numbers=np.append(rng.uniform(0, 1, n), np.nan)[:, None],
        number_names=["size"],
        tag_start=np.append(np.arange(n + 1), n),
        tag=codes[:n],
        tag_names=["hue=blue", "hue=red"],
    )
    rates = np.full((n + 1, len(catalogue.by_attribute)), 0.1, np.float32)
    factors = np.vstack([rng.normal(size=(n, 4)), np.zeros((1, 4))]).astype(np.float32)
    items = Items(
        catalogue,
        Vectors.quantise(vectors),
        np.append(rng.uniform(0, 0.2, n), np.nan).astype(np.float32),
        Neighbours.none(n, 3),
        ItemState.empty(codes, 2),
        attribute_rates=rates,
        factors=factors,
        segments=Segments(rng.normal(size=(3, 4)).astype(np.float32), np.log(np.full(3, 1 / 3, np.float32))),
        inverted=InvertedLists.assigned(vectors, vectors[:4]),
        words=Vocabulary.build(catalogue, vectors),
        companions=Companions.none(n),
        sequence=SequenceModel(
            rng.normal(size=WEIGHTS).astype(np.float32),
            Vectors.quantise(rng.normal(size=(n + 1, WIDTH)).astype(np.float32)),
            rng.normal(size=tower_size(_DIMENSION)).astype(np.float32),
        ),
    )
    return write_release(
        root,
        items=items,
        model_text=_model([name.replace(" ", "_") for name in names(items)]),
        item_columns=pa.table({"item_id": list(catalogue.item_ids)}),
        encoder_dir=None,
        encoder_fingerprint="",
        cut_off=_CUT_OFF,
        window={},
        metrics={},
        parent=None,
        created_at=_CUT_OFF,
    )


def _model(names: list[str]) -> str:
    """One tree with one split, as LightGBM writes it."""
    tree = (
        "Tree=0\nnum_leaves=2\nnum_cat=0\nsplit_feature=0\nthreshold=0.5\ndecision_type=2\nleft_child=-1\n"
        "right_child=-2\nleaf_value=0 1\ninternal_value=0.5\nshrinkage=1\n\n\n"
    )
    head = (
        "tree\nversion=v4\nnum_class=1\nnum_tree_per_iteration=1\nlabel_index=0\n"
        f"max_feature_idx={len(names) - 1}\nfeature_names={' '.join(names)}\ntree_sizes={len(tree)}\n\n"
    )
    return f"{head}{tree}end of trees\n"


async def _serve(path: Path) -> None:
    """Use a release as a service does: with and without inverted lists, and with written items."""
    from serving.ranking import NO_OVERLAY, Overlay, prepare
    from serving.store import ItemFields

    live = prepare(path, None)
    await _use(live)
    item_id, vector = live.items.catalogue.item_ids[0], live.items.vectors.pooled(*_one_row())
    fields = {"title": "New", "price": 1.0, "category": "a", "a:size": 1.0, "a:hue": ["red"]}
    written = {key: ItemFields(_CUT_OFF + 1, fields) for key in (item_id, "new item")}
    await _use(live.with_overlay(Overlay(written, dict.fromkeys(written, vector.astype("float32")), NO_OVERLAY.near)))
    live.items = replace(live.items, inverted=None)
    await _use(live)


async def _use(live: Any) -> None:
    """Every kind of request."""
    from features.context import Context
    from features.history import EMPTY

    live.warm()
    live.similar(0, 3)
    for query in ("", "item"):
        await live.retriever.candidates(EMPTY, _CUT_OFF, 5, None, Context(query=query))
        await live.retriever.candidates(EMPTY, _CUT_OFF, 5, None, Context(query=query, seeds=_one_row()[0]))


def _one_row() -> tuple[Any, Any]:
    import numpy as np

    return np.zeros(1, np.int32), np.ones(1)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m serving.compile", description=__doc__)
    parser.add_argument("folder", type=Path, help="a new folder")
    parser.add_argument("--level", action="append", choices=list(kernels.LEVELS), help="a level; default: all")
    options = parser.parse_args()
    count = compile_kernels(options.folder, options.level or list(kernels.LEVELS))
    print(f"{count} kernels per level in {options.folder}")


if __name__ == "__main__":
    main()
