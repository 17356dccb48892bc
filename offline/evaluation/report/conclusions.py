"""Conclusions in sentences: whether the ranker beats the baselines, by how much, and with what certainty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline.evaluation.report.content import CEILING, DRAWN, HEADLINE, RANKER, TRAINED, value_of
from offline.evaluation.report.formatting import count, decimal, difference, display_name, finite, slice_name

_PHRASES = {
    "better": ("The ranker is better than", "better than", "excludes"),
    "worse": ("The ranker is worse than", "worse than", "excludes"),
    "undecided": ("No clear difference between the ranker and", "no clear difference from", "does not exclude"),
}
"""By outcome: the start of the verdict, the same in a remark, and whether the interval excludes zero."""


def significant(comparison: Mapping[str, object]) -> bool:
    """True if the interval of a comparison excludes zero, on either side.

    comparison: `low` and `high`, the ends of the paired bootstrap interval of the difference. False where an end is
    missing, not finite or zero. Raises ValueError when low is above high.
    """
    low, high = finite(comparison.get("low")), finite(comparison.get("high"))
    if low is None or high is None:
        return False
    if low > high:
        raise ValueError(
            f"comparison of {comparison.get('a')!r} with {comparison.get('b')!r}: low {low} is above high {high}; "
            "swap them where the comparison is made"
        )
    return low > 0 or high < 0


def outcome(comparison: Mapping[str, Any]) -> str:
    """ "better" or "worse" where the whole interval is above or below zero, else "undecided"."""
    if not significant(comparison):
        return "undecided"
    return "better" if comparison["low"] > 0 else "worse"


def rivals(page: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The headline comparisons of the ranker in a slice, the strongest baseline first."""
    comparisons = [
        c
        for c in page["comparisons"]
        if (c.get("a"), c.get("metric"), c.get("slice")) == (RANKER, HEADLINE, part)
        and c.get("b") not in (CEILING, TRAINED)
        and finite(c.get("difference")) is not None
    ]
    return sorted(comparisons, key=lambda c: (c["difference"], str(c.get("b"))))


def corrected(page: Mapping[str, Any], comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    """The comparison with the strongest baseline of a slice, with the gate's interval if the gate made it too.

    That interval is corrected for the choice of the strongest baseline on the same lists.
    """
    key = comparison.get("slice"), comparison.get("b")
    return next(({**r, "b": r["rival"]} for r in page["rivals"] if (r.get("slice"), r.get("rival")) == key), comparison)


def verdict(page: Mapping[str, Any]) -> tuple[str, str]:
    """The outcome against the strongest baseline, and a sentence with it."""
    own, comparisons = decimal(value_of(page, RANKER, "all").get("value")), rivals(page, "all")
    if RANKER not in page["systems"]:
        return "undecided", "No ranker was evaluated: the metrics are those of the baselines alone."
    if not comparisons:
        return "undecided", f"The ranker reaches {HEADLINE} {own}. It was not compared with any baseline."
    first = corrected(page, comparisons[0])
    result, rival = outcome(first), str(first.get("b"))
    start, _, reading = _PHRASES[result]
    which = f", the strongest of {len(comparisons)} baselines" if len(comparisons) > 1 else ""
    fallback = page["choice"].get("simple_order") is not None
    chosen = f"{page['choice'].get('sentence')} Of the published order: " if fallback else ""
    return result, (
        f"{chosen}{start} {display_name(rival)}{which}: {HEADLINE} {own} against "
        f"{decimal(value_of(page, rival, 'all').get('value'))}, a difference of {difference(first)} over "
        f"{count(first.get('lists'))} lists. The interval {reading} zero."
    )


def remarks(page: Mapping[str, Any]) -> list[str]:
    """Sentences after the verdict: the other baselines, the other slices, systems not compared, and the ceiling."""
    sentences, comparisons = [], rivals(page, "all")
    for result, (_, phrase, _) in _PHRASES.items():
        names = [display_name(c.get("b")) for c in comparisons[1:] if outcome(c) == result]
        if names:
            sentences.append(f"Overall: {phrase} {', '.join(names)}.")
    for part in DRAWN:
        if part != "all" and (in_slice := rivals(page, part)):
            first = corrected(page, in_slice[0])
            sentences.append(
                f"{slice_name(part).capitalize()}: {_PHRASES[outcome(first)][1]} {display_name(first.get('b'))}, the "
                f"strongest baseline there: {difference(first)}, {count(first.get('lists'))} lists."
            )
    own, compared = finite(value_of(page, RANKER, "all").get("value")), {c.get("b") for c in comparisons}
    for name in page["systems"]:
        value = finite(value_of(page, name, "all").get("value"))
        if own is not None and value is not None and value > own and name not in {RANKER, CEILING, TRAINED} | compared:
            sentences.append(
                f"{display_name(name)} scores higher ({decimal(value)}) but was not compared with the ranker."
            )
    sentences += [
        f"The ranker closes {share:.0%} of the gap between {display_name(base)} and the best possible order."
        for base, share in gap_shares(page, "all").items()
        if share is not None
    ]
    return sentences


def gap_shares(page: Mapping[str, Any], part: str) -> dict[str, float | None]:
    """baseline -> (ranker - baseline) / (best possible - baseline); None where the baseline is at the ceiling."""
    top, own = (finite(value_of(page, name, part).get("value")) for name in (CEILING, RANKER))
    out: dict[str, float | None] = {}
    for base in ("popularity", "item_click_rate"):
        low = finite(value_of(page, base, part).get("value"))
        if low is not None and top is not None and own is not None:
            out[base] = (own - low) / (top - low) if top - low > 1e-9 else None
    return out
