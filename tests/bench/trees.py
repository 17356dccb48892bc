"""Speed of scoring trees: `python -m tests.bench.trees`, one thread, compared with `Booster.predict` in the same run.

Models are trained with lambdarank on synthetic lists of a realistic shape: 60 features, of which 16 are equal for all
rows of a list (user and context), 8 have missing values, 8 are heavy-tailed and one is a category. The two scorers
alternate on rows that no repeat has used before, so that neither profits from a warm branch predictor or cache. The
scores of every repeat are compared. Speed is also measured with no feature equal within a list, when nothing can be
folded.
"""

from __future__ import annotations

import argparse
import json
import platform
import time

import lightgbm as lgb
import numpy as np

from ranker.trees import Trees

FEATURES, CONSTANT, LIST = 60, 16, 50


def made_up_rows(rng: np.random.Generator, lists: int, size: int, constant: int = CONSTANT) -> np.ndarray:
    """float32[lists * size, 60]."""
    rows = rng.normal(size=(lists, size, FEATURES))
    rows[:, :, :constant] = rows[:, :1, :constant]
    rows[:, :, 40:48] = np.exp(2 * rows[:, :, 40:48])
    rows[:, :, 59] = rng.integers(0, 30, (lists, size))
    flat = rows.reshape(-1, FEATURES).astype(np.float32)
    for column in (3, 15, 20, 21, 22, 23, 24, 30):
        missing = rng.random(lists if column < constant else len(flat)) < 0.3
        flat[np.repeat(missing, size) if column < constant else missing, column] = np.nan
    return flat


def train_model(trees: int, leaves: int, lists: int) -> str:
    """A lambdarank model in text format, trained with gains from a mixture of the features."""
    rng = np.random.default_rng(0)
    rows = made_up_rows(rng, lists, LIST)
    filled = np.nan_to_num(rows)
    utility = filled @ rng.normal(size=FEATURES) * 0.1 + filled[:, 16] * filled[:, 2] + np.sin(2 * filled[:, 20])
    utility += (filled[:, 59] % 3 == 0) + rng.normal(size=len(rows))
    gain = np.digitize(utility, np.quantile(utility, [0.8, 0.93, 0.98]))
    data = lgb.Dataset(rows, gain, group=[LIST] * lists, categorical_feature=[59])
    settings = {"objective": "lambdarank", "num_leaves": leaves, "learning_rate": 0.05, "feature_fraction": 0.5}
    return lgb.train(settings | {"verbosity": -1, "num_threads": 1}, data, trees).model_to_string()


def timed_ms(call: object, rows: np.ndarray) -> tuple[float, np.ndarray]:
    before = time.perf_counter()
    answer = call(rows)  # type: ignore[operator]
    return 1000 * (time.perf_counter() - before), answer


def compare(text: str, rows: int, repeats: int, constant: int) -> tuple[np.ndarray, np.ndarray]:
    """ms[repeats] of `Booster.predict` and of `Trees.score`, alternating. Raises SystemExit if any score differs."""
    booster, trees = lgb.Booster(model_str=text), Trees.parse(text)
    rng = np.random.default_rng(rows)
    slow, fast = np.empty(repeats), np.empty(repeats)
    trees.score(made_up_rows(rng, 1, rows, constant))
    for repeat in range(repeats):
        batch = made_up_rows(rng, 1, rows, constant)
        slow[repeat], expected = timed_ms(lambda x: booster.predict(x, raw_score=True, num_threads=1), batch)
        fast[repeat], score = timed_ms(trees.score, batch)
        if not np.array_equal(score, expected):
            raise SystemExit(f"{rows} rows: scores differ from Booster.predict by {np.abs(score - expected).max()}")
    return slow, fast


def spread(ms: np.ndarray) -> str:
    low, middle, high = np.percentile(ms, [10, 50, 90])
    return f"{middle:8.2f} ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=31, help="timings per line of the table")
    parser.add_argument("--lists", type=int, default=400, help="training lists per model, 50 rows each")
    options = parser.parse_args()
    print(f"{platform.processor() or platform.machine()}, LightGBM {lgb.__version__}, one thread, ms: median (p10-p90)")
    print(
        f"{'rows':>5} {'trees':>6} {'leaves':>6} {'equal':>6}  {'Booster.predict':>24} {'Trees.score':>22} {'ratio':>6}"
    )
    shapes = [(rows, trees, 31, CONSTANT) for trees in (200, 500, 1000) for rows in (100, 500, 1000)]
    shapes += [(500, 500, 31, 0), (500, 500, 63, CONSTANT), (500, 1000, 63, CONSTANT), (500, 200, 255, CONSTANT)]
    texts: dict[tuple[int, int], str] = {}
    ratios: dict[str, float] = {}
    for rows, trees, leaves, constant in shapes:
        if (trees, leaves) not in texts:
            texts[trees, leaves] = train_model(trees, leaves, options.lists)
        slow, fast = compare(texts[trees, leaves], rows, options.repeats, constant)
        ratio = float(np.median(slow) / np.median(fast))
        ratios[f"{rows}x{trees}x{leaves}" + ("" if constant else "_nothing_equal")] = round(ratio, 2)
        print(
            f"{rows:5} {trees:6} {leaves:6} {constant:6}  {spread(slow):>24} {spread(fast):>22} {ratio:6.1f}",
            flush=True,
        )
    print(json.dumps({"speedup_vs_predict": ratios["500x500x31"], "speedup": ratios}))


if __name__ == "__main__":
    main()
