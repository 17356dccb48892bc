"""Comparison of libraries for nearest text neighbours: `python -m tests.bench.neighbours`.

Each side runs in its own process with one thread. Sides: `exact` (our int8 vectors, compared with every item),
`inverted` (the same cosines, in inverted lists from scikit-learn's k-means), FAISS (inverted lists, and a graph),
USearch and hnswlib (graphs). Reported for each: seconds to build; megabytes on disk (for `inverted`, which uses the
vectors of `exact`, of the lists alone); whether a second build gives the same bytes; memory of a process that answers
queries (private, and shared between workers that map the same file); milliseconds per query for the nearest 500, in
processor time; and the recall. The libraries are not dependencies: `pip install` those to compare; missing ones are
skipped.

The vectors are synthetic, but shaped like sentence embeddings of products: a tree of topics, coordinates with
decreasing variances (about 60 directions hold nearly all of it), and queries that are the weighted mean of a few items
of one or two topics, like an interest vector. `--vectors FILE.npy` uses real ones instead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from features.text.inverted_lists import InvertedLists
from features.text.vectors import Vectors
from offline.training.inverted_lists import build_inverted_lists

K = 500
DIMENSIONS = 384
Search = Callable[[np.ndarray], np.ndarray]


def made_up(items: int, seed: int = 0) -> np.ndarray:
    """float32[items, 384] unit vectors: 40 departments of 25 topics, and a common direction, as encoders have."""
    rng = np.random.default_rng(seed)
    spread = (1.0 / np.sqrt(1.0 + np.arange(DIMENSIONS) / 8.0)).astype(np.float32)
    department = rng.standard_normal((40, DIMENSIONS), np.float32) * spread
    topic = department[np.arange(1000) % 40] + 0.8 * rng.standard_normal((1000, DIMENSIONS), np.float32) * spread
    popularity = (1.0 / (1.0 + np.arange(1000))) ** 0.7
    out = np.empty((items, DIMENSIONS), np.float32)
    for begin in range(0, items, 50_000):
        part = out[begin : begin + 50_000]
        part[:] = topic[rng.choice(1000, len(part), p=popularity / popularity.sum())]
        part += 0.9 * rng.standard_normal(part.shape, np.float32) * spread
        part += 0.5 * department[0]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def make_queries(vectors: np.ndarray, count: int) -> np.ndarray:
    """float32[count, d]: each the mean of five items near one item and two near another, weighted by recency."""
    rng = np.random.default_rng(1)
    sample = vectors[rng.choice(len(vectors), min(len(vectors), 20_000), replace=False)]
    out = np.empty((count, vectors.shape[1]), np.float32)
    for q in range(count):
        liked = [np.argsort(-(sample @ sample[rng.integers(len(sample))]))[:50] for _ in range(2)]
        rows = np.concatenate([rng.choice(liked[0], 5), rng.choice(liked[1], 2)])
        out[q] = (sample[rows] * np.exp2(-np.arange(len(rows)) / 3)[:, None]).sum(axis=0)
    out /= np.linalg.norm(out, axis=1, keepdims=True)
    return out


def exact(path: Path, vectors: np.ndarray | None, _: dict[str, int]) -> Search | None:
    if vectors is not None:
        quantised = Vectors.quantise(vectors)
        np.save(path.with_suffix(".scale.npy"), quantised.scale)
        np.save(path, quantised.code)
        return None
    quantised = Vectors(np.asarray(np.load(path, mmap_mode="r")), np.load(path.with_suffix(".scale.npy")))
    all_rows = np.arange(len(quantised.scale), dtype=np.int32)

    def search(query: np.ndarray) -> np.ndarray:
        cosine = quantised.cosines_to(all_rows, query.astype(np.float64))
        best = np.argpartition(-cosine, K)[:K]
        return best[np.argsort(-cosine[best], kind="stable")]

    return search


def inverted(path: Path, vectors: np.ndarray | None, s: dict[str, int]) -> Search | None:
    parts = {name: path.with_suffix(f".{name}.npy") for name in ("scale", "centre", "centre_scale", "start", "row")}
    if vectors is not None:
        lists = build_inverted_lists(np.vstack([vectors, np.full((1, DIMENSIONS), np.nan, np.float32)]), 0, above=0)
        assert lists is not None
        np.save(path, lists.row)
        np.save(parts["start"], lists.start)
        np.save(parts["centre"], lists.centre.code)
        np.save(parts["centre_scale"], lists.centre.scale)
        quantised = Vectors.quantise(vectors)
        np.save(path.with_suffix(".code.npy"), quantised.code)
        np.save(parts["scale"], quantised.scale)
        return None
    arrays = {name: np.load(file) for name, file in parts.items() if name != "row"}
    lists = InvertedLists(Vectors(arrays["centre"], arrays["centre_scale"]), arrays["start"], np.load(path))
    quantised = Vectors(np.asarray(np.load(path.with_suffix(".code.npy"), mmap_mode="r")), arrays["scale"])

    def search(query: np.ndarray) -> np.ndarray:
        direction = query.astype(np.float64)
        rows = lists.near(direction, look_at=s["look"])
        cosine = quantised.cosines_to(rows, direction)
        best = np.argpartition(-cosine, min(K, len(rows) - 1))[:K]
        return np.pad(rows[best[np.argsort(-cosine[best], kind="stable")]], (0, K - len(best)), constant_values=-1)

    return search


def hnswlib(path: Path, vectors: np.ndarray | None, s: dict[str, int]) -> Search | None:
    import hnswlib as library

    index = library.Index("ip", DIMENSIONS)
    if vectors is not None:
        index.init_index(len(vectors), M=s["m"], ef_construction=s["build"], random_seed=1)
        index.add_items(vectors, num_threads=1)
        index.save_index(str(path))
        return None
    index.load_index(str(path))
    index.set_ef(s["look"])
    return lambda query: index.knn_query(query, K, num_threads=1)[0][0]


def usearch(path: Path, vectors: np.ndarray | None, s: dict[str, int]) -> Search | None:
    from usearch.index import Index

    options = {"connectivity": s["m"], "expansion_add": s["build"], "expansion_search": s["look"]}
    index = Index(ndim=DIMENSIONS, metric="cos", dtype="i8", **options)
    if vectors is not None:
        index.add(np.arange(len(vectors)), vectors, threads=1)
        index.save(str(path))
        return None
    index.view(str(path))
    index.expansion_search = s["look"]
    return lambda query: index.search(query, K, threads=1).keys.astype(np.int64)


def faiss_ivf(path: Path, vectors: np.ndarray | None, s: dict[str, int]) -> Search | None:
    import faiss as library

    library.omp_set_num_threads(1)
    if vectors is not None:
        index = library.index_factory(DIMENSIONS, f"IVF{s['lists']},SQ8", library.METRIC_INNER_PRODUCT)
        rng = np.random.default_rng(0)
        index.train(vectors[rng.choice(len(vectors), min(len(vectors), 50 * s["lists"]), replace=False)])
        index.add(vectors)
        library.write_index(index, str(path))
        return None
    index = library.read_index(str(path), library.IO_FLAG_MMAP)
    index.nprobe = s["look"]
    return lambda query: index.search(query[None], K)[1][0]


def faiss_hnsw(path: Path, vectors: np.ndarray | None, s: dict[str, int]) -> Search | None:
    import faiss as library

    library.omp_set_num_threads(1)
    if vectors is not None:
        index = library.index_factory(DIMENSIONS, f"HNSW{s['m']},SQ8", library.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = s["build"]
        index.train(vectors[:50_000])
        index.add(vectors)
        library.write_index(index, str(path))
        return None
    index = library.read_index(str(path))
    index.hnsw.efSearch = s["look"]
    return lambda query: index.search(query[None], K)[1][0]


SIDES: dict[str, tuple[Callable[[Path, np.ndarray | None, dict[str, int]], Search | None], str, list[int]]] = {
    "exact": (exact, "numba", [0]),
    "inverted": (inverted, "sklearn", [16, 32, 64, 128]),
    "faiss_ivf": (faiss_ivf, "faiss", [8, 16, 32, 64]),
    "faiss_hnsw": (faiss_hnsw, "faiss", [500, 1000]),
    "usearch": (usearch, "usearch", [500, 1000]),
    "hnswlib": (hnswlib, "hnswlib", [500, 1000]),
}
"""For each side: its function, which builds if given vectors and else opens; its library; and its values of `look`."""


def settings(items: int, look: int) -> dict[str, int]:
    return {"m": 16, "build": 128, "look": look, "lists": max(int(4 * items**0.5), 16)}


def private_and_shared_mb() -> tuple[float, float]:
    """Private pages of this process, and pages of files, which the workers of a machine share."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(status["RssAnon"].split()[0]) / 1024, int(status["RssFile"].split()[0]) / 1024


def child(job: dict[str, Any]) -> dict[str, Any]:
    """The work of one side in its own process: build, or answer queries."""
    side, path = SIDES[job["side"]][0], Path(job["path"])
    if job["do"] == "build":
        vectors = np.load(job["vectors"])
        started = time.process_time()
        side(path, vectors, settings(len(vectors), 0))
        seconds = time.process_time() - started
        return {
            "build_s": seconds,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "mb": sum(f.stat().st_size for f in path.parent.glob(f"{path.stem}*") if ".code" not in f.name) / 2**20,
        }
    queries = np.load(job["queries"])
    before = private_and_shared_mb()
    started = time.perf_counter()
    search = side(path, None, settings(job["items"], job["look"]))
    assert search is not None
    first = search(queries[0])
    open_s = time.perf_counter() - started
    ms, neighbours = np.empty(len(queries)), np.empty((len(queries), K), np.int64)
    for q, query in enumerate(queries):
        started = time.process_time()
        neighbours[q] = search(query)
        ms[q] = 1000 * (time.process_time() - started)
    assert (neighbours[0] == first).all()
    after = private_and_shared_mb()
    np.save(job["found"], neighbours)
    return {
        "open_s": open_s,
        "p50_ms": np.median(ms),
        "p99_ms": np.percentile(ms, 99),
        "private_mb": after[0] - before[0],
        "shared_mb": after[1] - before[1],
    }


def run_child(job: dict[str, Any]) -> dict[str, Any]:
    """The result of a child process, limited to one thread for every library."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "tests.bench.neighbours", "--child", json.dumps(job)]
    process = subprocess.run(command, env=os.environ | threads, capture_output=True, text=True)
    if process.returncode:
        raise SystemExit(f"{job['side']}: {process.stderr}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


def exact_neighbours(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """int64[queries, 500]: the nearest by float32, computed in blocks of items."""
    score = np.concatenate([queries @ vectors[b : b + 100_000].T for b in range(0, len(vectors), 100_000)], axis=1)
    best: np.ndarray = np.argpartition(-score, K, axis=1)[:, :K]
    return best


def recall(neighbours: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([len(set(f) & set(t)) / K for f, t in zip(neighbours.tolist(), truth.tolist(), strict=True)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--vectors", type=Path, help="float32[n, 384] unit vectors to use instead of synthetic ones")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--looks", nargs="*", type=int, help="use only these values of each side's search parameter")
    parser.add_argument("--once", action="store_true", help="do not build a second time to compare the bytes")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(json.loads(options.child)), default=float))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(compare(options, Path(folder))))


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    vectors = np.load(options.vectors) if options.vectors else made_up(options.items)
    queries = make_queries(vectors, options.queries)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "queries.npy", queries)
    truth, items = exact_neighbours(vectors, queries), len(vectors)
    del vectors
    print(f"{items} items, {len(queries)} queries of {K}, one thread")
    print(
        f"{'side':>11} {'look':>5} {'build s':>8} {'MB':>6} {'same bytes':>10} {'open s':>7} {'p50 ms':>7} "
        f"{'p99 ms':>7} {'private MB':>10} {'shared MB':>9} {'recall@500':>10}"
    )
    out: dict[str, Any] = {}
    for side in options.sides:
        _, library, looks = SIDES[side]
        if importlib.util.find_spec(library) is None:
            print(f"{side:>11}  {library} is not installed")
            continue
        job = {
            "side": side,
            "path": str(folder / f"{side}.npy"),
            "vectors": str(folder / "vectors.npy"),
            "items": items,
        }
        job |= {"queries": str(folder / "queries.npy"), "found": str(folder / "found.npy")}
        builds = [run_child(job | {"do": "build"}) for _ in range(1 if options.once else 2)]
        same = "" if options.once else str(builds[0]["sha256"] == builds[1]["sha256"])
        for look in [k for k in looks if not options.looks or k in options.looks]:
            answer = run_child(job | {"do": "answer", "look": look})
            answer |= {"recall": recall(np.load(job["found"]), truth), "build_s": builds[0]["build_s"]}
            answer |= {"mb": builds[0]["mb"], "same_bytes": same}
            print(
                f"{side:>11} {look:5} {answer['build_s']:8.1f} {answer['mb']:6.0f} {same:>10} "
                f"{answer['open_s']:7.2f} {answer['p50_ms']:7.2f} {answer['p99_ms']:7.2f} "
                f"{answer['private_mb']:10.0f} "
                f"{answer['shared_mb']:9.0f} {answer['recall']:10.4f}",
                flush=True,
            )
            out[f"{side}_{look}"] = answer
        Path(job["path"]).unlink()
    ratio = {f"speedup_{k}": out["exact_0"]["p50_ms"] / v["p50_ms"] for k, v in out.items()} if "exact_0" in out else {}
    return {"items": items, **ratio, "recall": {k: v["recall"] for k, v in out.items()}, "sides": out}


if __name__ == "__main__":
    main()
