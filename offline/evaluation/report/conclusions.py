"""What the figures say, in sentences: whether the ranker is better, than what, by how much, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from offline.evaluation.report.content import CEILING, DRAWN, HEADLINE, RANKER, value_of
from offline.evaluation.report.formatting import count, decimal, display_name, finite, gain

PHRASES = {
    "better": ("better than", "the interval excludes zero"),
    "worse": ("worse than", "the interval excludes zero"),
    "undecided": ("not to be told from", "the interval does not exclude zero"),
}


def significant(comparison: Mapping[str, object]) -> bool:
    """Whether the interval of a comparison excludes zero, on either side.

    comparison: `low` and `high`, the ends of the paired bootstrap interval of the difference. An end that is missing or
    not finite says nothing, so False; an end at zero does not exclude it. Raises ValueError when low is above high.
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


def standing(comparison: Mapping[str, Any]) -> str:
    """ "better", "worse" or "undecided": which side of zero the whole interval is on."""
    if not significant(comparison):
        return "undecided"
    return "better" if comparison["low"] > 0 else "worse"


def rivals(page: Mapping[str, Any], part: str) -> list[dict[str, Any]]:
    """The headline comparisons of the ranker in a slice, the strongest baseline first."""
    found = [
        c
        for c in page["comparisons"]
        if (c.get("a"), c.get("metric"), c.get("slice")) == (RANKER, HEADLINE, part)
        and c.get("b") != CEILING
        and finite(c.get("difference")) is not None
    ]
    return sorted(found, key=lambda c: (c["difference"], str(c.get("b"))))


def verdict(page: Mapping[str, Any]) -> tuple[str, str]:
    """Standing against the strongest baseline, and the sentence that says it."""
    own = value_of(page, RANKER, "all").get("value")
    against = rivals(page, "all")
    if RANKER not in page["systems"]:
        return "undecided", "No ranker was evaluated: the figures are those of the baselines alone."
    if not against:
        return (
            "undecided",
            f"The ranker reaches {HEADLINE} {decimal(own)}; it was compared with nothing, so no more is claimed.",
        )
    first = against[0]
    found, name = standing(first), display_name(first.get("b"))
    which = f", the strongest of the {len(against)} baselines it was compared with" if len(against) > 1 else ""
    saying, reading = PHRASES[found]
    return found, (
        f"The ranker is {saying} {name}{which}: {HEADLINE} {decimal(own)} against "
        f"{decimal(value_of(page, str(first.get('b')), 'all').get('value'))}, a difference of "
        f"{gain(first)} over {count(first.get('lists'))} lists; {reading}."
    )


def remarks(page: Mapping[str, Any]) -> list[str]:
    """What belongs beside the verdict: the other baselines, the other slices, what was not compared, the ceiling."""
    said, against = [], rivals(page, "all")
    for side, (saying, _) in PHRASES.items():
        names = [display_name(c.get("b")) for c in against[1:] if standing(c) == side]
        if names:
            said.append(f"Overall: {saying} {', '.join(names)}.")
    for part in DRAWN:
        if part != "all" and (found := rivals(page, part)):
            first = found[0]
            said.append(
                f"{display_name(part).capitalize()}: {PHRASES[standing(first)][0]} {display_name(first.get('b'))}, the "
                f"strongest there, {gain(first)}, {count(first.get('lists'))} lists."
            )
    own, compared = finite(value_of(page, RANKER, "all").get("value")), {c.get("b") for c in against}
    for name in page["systems"]:
        value = finite(value_of(page, name, "all").get("value"))
        if own is not None and value is not None and value > own and name not in {RANKER, CEILING} | compared:
            said.append(f"{display_name(name)} scores higher ({decimal(value)}) and was not compared with the ranker.")
    for base, share in shares(page, "all").items():
        if share is not None:
            said.append(
                f"From {display_name(base)} to the best possible order, the ranker goes {share:.0%} of the way."
            )
    return said


def shares(page: Mapping[str, Any], part: str) -> dict[str, float | None]:
    """baseline -> (ranker - baseline) / (best possible - baseline); None where that has no meaning."""
    top, own = (finite(value_of(page, name, part).get("value")) for name in (CEILING, RANKER))
    out: dict[str, float | None] = {}
    for base in ("popularity", "item_click_rate"):
        low = finite(value_of(page, base, part).get("value"))
        if low is not None and top is not None and own is not None:
            out[base] = (own - low) / (top - low) if top - low > 1e-9 else None
    return out
