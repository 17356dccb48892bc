"""Choice of the ranker to publish: the trained one, or a simple order where training wins nothing.

The simple order is chosen on the training and validation lists, and both are compared on the test lists. In doubt the
simple order is published, because it cannot have learned noise; but where the live release has a trained ranker, any
lead is enough, so that shops do not switch between the two from night to night.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from features.arrays import F64
from offline.evaluation import served_scores, slices, systems
from offline.nightly import comparison
from offline.nightly.artefacts import Artefacts
from offline.runtime import OnProgress
from offline.training import choose_order
from ranker.trees import Trees
from serving.release import ReleaseError, read_judgements, read_manifest

TRAINED = "trained"


def choose_ranker(a: Artefacts, on_progress: OnProgress) -> None:
    """Write `published.txt` and `published_score.npy`, the ranker and its scores of validation rows, and `choice.json`.

    `choice.json`: `options`, the settings; `simple_order`, what the published simple order orders by, None for the
    trained ranker; `weights` of its features; `result` of the trained ranker against the chosen simple order: better,
    worse, undecided or unknown; `comparisons`, by slice; `sentence`, for people; `nights`, how many nights in a row,
    this one included, have ended with a simple order.
    """
    learned, test = a.window_rows("ranker", "validation"), a.window_rows("test")
    names = [f.name for f in a.replay.features]
    order, simple_text = choose_order(learned.rows, learned.lists, names)
    targets, simple = a.inputs.targets(test.lists), Trees.parse(simple_text)
    own, theirs = (
        comparison.ndcg(served_scores(t, test.rows, test.lists), test.lists, targets) for t in (a.trees, simple)
    )
    of_lists = slices.list_slices(a.inputs.data.events, test.lists, a.warm[test.numbers])
    compared = systems.best_rivals(own, {order.about: theirs}, test.lists.user, of_lists)
    result = judge(compared)
    certainty = 0.0 if _live_is_trained(a) else a.inputs.config.gate.certainty
    falls_back = not is_better(compared, certainty) and a.inputs.config.gate.certainty > 0
    a.file("published.txt").write_text(simple_text if falls_back else a.model_text, "utf-8")
    score = simple.score(a.window_rows("validation").rows) if falls_back else a.valid_score
    a.save("published_score.npy", score)
    a.write_json(
        "choice.json",
        {
            "options": _options(a),
            "simple_order": order.about if falls_back else None,
            "weights": dict(order.weights) if falls_back else None,
            "result": result,
            "comparisons": compared,
            "sentence": _sentence(result, order.about, compared, (own, theirs), falls_back),
            "nights": _nights_before(a) + 1 if falls_back else 0,
        },
    )


def is_current(a: Artefacts) -> bool:
    """True if the choice was made with the current settings."""
    return bool(a.json("choice.json")["options"] == _options(a))


def judge(compared: Sequence[Mapping[str, Any]]) -> str:
    """ "worse" if the trained ranker is worse in any slice, otherwise the result over all lists; "unknown" if these are
    too few to judge."""
    results = {c["slice"]: str(c["result"]) for c in compared}
    return "worse" if "worse" in results.values() else results.get("all", "unknown")


def is_better(compared: Sequence[Mapping[str, Any]], certainty: float) -> bool:
    """True if the trained ranker leads over all lists, with at least this probability that it is better, and is in no
    slice worse beyond chance. False if there are too few lists to compare."""
    leads = any(c["slice"] == "all" and c["difference"] > 0 and 1 - c["p"] / 2 >= certainty for c in compared)
    return leads and judge(compared) != "worse"


def _options(a: Artefacts) -> dict[str, Any]:
    return {"certainty": a.inputs.config.gate.certainty}


def _live_is_trained(a: Artefacts) -> bool:
    pointer = a.inputs.pointer()
    if pointer is None:
        return False
    try:
        return isinstance(read_manifest(a.inputs.config.releases / pointer.id).simple_order, msgspec.UnsetType)
    except ReleaseError:
        return False


def _nights_before(a: Artefacts) -> int:
    """Number of the latest nights in a row, before this one, that ended with a simple order."""
    count, cut_off = 0, a.inputs.cut_off
    for line in reversed(read_judgements(a.inputs.config.releases)):
        if (line.get("cut_off") or -np.inf) >= cut_off:
            continue  # this night, or a later one that is being made again
        if not line.get("simple_order"):
            break
        count += 1
    return count


def _sentence(
    result: str, about: str, compared: Sequence[Mapping[str, Any]], ndcg: tuple[F64, F64], falls_back: bool
) -> str:
    """The choice, and its reason."""
    if result == "unknown":
        lists = int((~np.isnan(ndcg[0])).sum())
        why = f"{lists:,} test lists are too few to show that the trained ranker is better than"
    elif result == "better":
        why = "The trained ranker is better than"
    elif result == "worse":
        why = "The trained ranker is worse than"
    else:
        why = "No clear difference between the trained ranker and"
    told = "; ".join(
        f"{c['slice'].replace('_', ' ')} {c['own']:.4f} against {c['theirs']:.4f}, a difference of "
        f"{c['difference']:+.4f} [{c['low']:+.4f}, {c['high']:+.4f}] over {c['lists']:,} lists"
        for c in compared
        if c["slice"] == "all" or c["result"] == "worse"
    )
    why += f" the best simple order ({about})" + (f": ndcg@10 of {told}." if told else ".")
    return f"This release ranks by a simple order, {about}. {why}" if falls_back else why
