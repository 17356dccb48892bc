"""Data checks before training. Each compares a number with its history and a limit.

A failed check stops the nightly run, and the live release stays live. The findings are written as JSON and printed as
a table, each with its likely cause. Checks without enough history are skipped, as in a first run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from offline.config import CheckConfig
from offline.runtime import ChecksFailed, write_json

STOP, WARN = "stop", "warn"
FAILED = "the data checks failed; nothing was published, and the live release stays live"


class Finding(NamedTuple):
    """A result of a check. level: `stop` or `warn`.

    value, limit: the number and the limit it was compared with.
    """

    check: str
    level: str
    message: str
    value: float | None = None
    limit: float | None = None


def check_statistics(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, config: CheckConfig, clock: float
) -> list[Finding]:
    """Findings in the statistics of a data set (`statistics.data_statistics`); those that stop the run come first.

    before: statistics of the previous run, None for a first run. clock: Unix seconds. Checks in `accept` only warn.
    """
    findings = [
        *_time(now, config, clock),
        *_volumes(now, config),
        *_keys(now, config),
        *_bot(now, config),
        *_inputs(now, config),
        *(_compare_with_previous(now, before, config) if before is not None else ()),
    ]
    return sorted((accept(f, config) for f in findings), key=lambda f: f.level != STOP)


def accept(finding: Finding, config: CheckConfig) -> Finding:
    """The finding, as a warning if its check is in the configured `accept`."""
    return finding._replace(level=WARN) if finding.check in config.accept else finding


def check_disk(directory: Path, last_bytes: int, config: CheckConfig) -> list[Finding]:
    """A finding if there is too little space for this run to become as large as the largest other one.

    last_bytes: size of the largest other run minus the current size of this one.
    """
    free = shutil.disk_usage(directory).free
    if free >= config.free_disk * last_bytes:
        return []
    return [
        accept(
            Finding(
                "disk",
                STOP,
                f"only {free / 1e6:,.0f} MB are free in {directory}; the largest other run takes "
                f"{last_bytes / 1e6:,.0f} MB more than this one does so far: free some disk space",
                free,
                config.free_disk * last_bytes,
            ),
            config,
        )
    ]


def check_drift(drift: Mapping[str, float], config: CheckConfig) -> list[Finding]:
    """A finding if features drifted (`statistics.feature_drift`)."""
    beyond = sorted((n for n, value in drift.items() if value > config.feature_drift), key=lambda n: -drift[n])
    if not beyond:
        return []
    share = len(beyond) / len(drift)
    examples = ", ".join(f"{n} {drift[n]:.1f}" for n in beyond[:3])
    level = STOP if share > config.drifted_features else WARN
    return [
        accept(
            Finding(
                "feature_drift",
                level,
                f"{len(beyond)} of {len(drift)} features drifted between the training and the test lists "
                f"(PSI: {examples}): did the meaning of a column change?",
                share,
                config.drifted_features,
            ),
            config,
        )
    ]


def raise_if_stopped(findings: Sequence[Finding], report: Path) -> None:
    """Raise ChecksFailed with all causes if any finding stops the run."""
    causes = [f"  {f.check}: {f.message}" for f in findings if f.level == STOP]
    if causes:
        names = " ".join(f"--accept {name}" for name in dict.fromkeys(f.check for f in findings if f.level == STOP))
        raise ChecksFailed(
            f"{FAILED}\n"
            + "\n".join(causes)
            + f"\nall findings: {report}. Fix the data and run again; if the data are correct, add {names}"
        )


def last_statistics(directory: Path, run: str, until: float) -> dict[str, Any] | None:
    """Statistics of the latest run that passed its checks and ended by `until`; None if there is none.

    run: name of the current run, which is skipped.
    """
    candidates = []
    for path in directory.glob("*.json"):
        try:
            statistics = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        if isinstance(statistics, dict) and statistics.get("run") != run and statistics.get("until", np.inf) <= until:
            candidates.append((statistics["until"], path.stat().st_mtime, path.name, statistics))
    return dict(max(candidates, key=lambda k: k[:3])[3]) if candidates else None


def keep_statistics(directory: Path, run: str, statistics: Mapping[str, Any], most: int = 60) -> None:
    """Save the statistics of a run for later ones, without user IDs. Only the newest `most` files are kept."""
    statistics = {**statistics, "top_user": {k: v for k, v in statistics["top_user"].items() if k != "user"}}
    directory.mkdir(parents=True, exist_ok=True)
    date = datetime.fromtimestamp(float(statistics["until"]), UTC).strftime("%Y%m%d")
    write_json(directory / f"{date}-{run}.json", {"run": run, **statistics})
    for path in sorted(directory.glob("*.json"))[:-most]:
        path.unlink()


def _time(now: Mapping[str, Any], config: CheckConfig, clock: float) -> Iterator[Finding]:
    if now["future"]:
        yield Finding(
            "future",
            STOP,
            f"{now['future']:,} events are in the future, the latest by {now['latest'] - clock:,.0f} s: "
            "check the clock and the time zone of the system that logs them",
            now["future"],
            0,
        )
    age = clock - now["latest"]
    if config.max_age_s is not None and age > config.max_age_s:
        yield Finding(
            "age",
            STOP,
            f"the newest event is {age / 3600:,.1f} hours old: no new events are arriving",
            age,
            config.max_age_s,
        )
    early = now["keys"]["actions before their list"]
    if early > config.before_list:
        yield Finding(
            "clock",
            STOP,
            f"{early:.0%} of the last day's actions are earlier than the list they belong to: "
            "lists and actions are logged with different clocks",
            early,
            config.before_list,
        )


def _volumes(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    days = min(now["span_days"] - 1, 14)
    if days - 1 < config.history_days:
        return
    # A kind of event that begins is a new source, such as the service on its first day: not a part of the log twice.
    began = sum(c[0] for kind, c in now["per_day"].items() if kind != "events" and not any(c[1:days]))
    # The first day of a log is usually incomplete, so it is left out.
    for kind, counts in now["per_day"].items():
        today, before = counts[0] - (began if kind == "events" else 0), counts[1:days]
        low, high = min(before), max(before)
        if kind != "events" and low < 50:
            continue
        if today < config.volume_low * low or (today > config.volume_high * high and high >= 50):
            yield Finding(
                "volume",
                STOP,
                f"{kind}: {today:,} on the last day, {low:,} to {high:,} on each of the {len(before)} days before: "
                "part of the log is missing or duplicated",
                today,
                config.volume_low * low,
            )
    yield from _click_rate(now["per_day"], days, config)


def _click_rate(per_day: Mapping[str, list[int]], days: int, config: CheckConfig) -> Iterator[Finding]:
    shown = np.array(per_day["impression"][:days], np.float64)
    clicks = np.array(per_day["click"][:days], np.float64)
    if shown[0] < 100 or shown[1:].sum() < 100 or not clicks[1:].sum():
        return
    rate, usual = clicks[0] / shown[0], clicks[1:].sum() / shown[1:].sum()
    noise = np.sqrt(usual / shown[0])
    if abs(rate - usual) > 5 * noise and not 1 / config.click_rate < rate / usual < config.click_rate:
        yield Finding(
            "click_rate",
            STOP,
            f"{rate:.2%} of the last day's impressions were clicked (before: {usual:.2%}): clicks are lost, logged "
            "twice or made by a bot",
            rate / usual,
            config.click_rate,
        )


def _keys(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    keys, repeated = now["keys"], now["repeated"]
    if keys["repeated event ids"]:
        yield Finding(
            "keys",
            STOP,
            f"{keys['repeated event ids']:,.0f} event IDs occur in the log more than once: a file was imported twice, "
            "or IDs are reused",
            keys["repeated event ids"],
            0,
        )
    if repeated["share"] > config.repeated:
        yield Finding(
            "duplicates",
            STOP,
            f"{repeated['share']:.0%} of the {repeated['rows']:,} events of one day ({repeated['days_ago']} days "
            "before the last) occur in the log again, with the same user, item and time of day: "
            "a day was imported twice",
            repeated["share"],
            config.repeated,
        )
    if keys["lists of several users"] > config.several_users:
        yield Finding(
            "keys",
            STOP,
            f"{keys['lists of several users']:.0%} of lists have events of more than one user: request IDs are reused",
            keys["lists of several users"],
            config.several_users,
        )
    unknown = now["null"]["event item_id (not in the catalogue)"]
    if unknown > config.unknown_items:
        yield Finding(
            "keys",
            STOP,
            f"{unknown:.0%} of events have an item that is not in the catalogue: "
            "the catalogue is incomplete or from another shop",
            unknown,
            config.unknown_items,
        )


def _bot(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    top = now["top_user"]
    if top["actions"] >= config.bot_actions and top["share"] > config.bot_share:
        yield Finding(
            "bot",
            STOP,
            f"user {top['user']!r} made {top['actions']:,} of the last day's actions, {top['share']:.0%}: "
            "if this is a bot, remove its events",
            top["share"],
            config.bot_share,
        )


def _inputs(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    # With a new kind of event, such as the first impressions, the hours and items of all events differ as well.
    kinds = now["inputs"]["kind of event"]
    began = any(n and not usual for n, usual in zip(kinds["now"], kinds["usual"], strict=True))
    for name, histogram in now["inputs"].items():
        if (
            histogram["psi"] <= max(0.25, 2 * histogram["psi_before"])
            or sum(histogram["now"]) < 100
            or sum(histogram["usual"]) < 100
        ):
            continue
        level = STOP if histogram["psi"] > config.input_drift and not began else WARN
        share = [np.array(histogram[k], np.float64) / max(sum(histogram[k]), 1) for k in ("usual", "now")]
        bin_changed = int(np.argmax(np.abs(share[1] - share[0])))
        yield Finding(
            "input_drift",
            level,
            f"{name}: the share of {histogram['bins'][bin_changed]} is {share[1][bin_changed]:.0%} on the last day, "
            f"{share[0][bin_changed]:.0%} in the week before (PSI {histogram['psi']:.2f})",
            histogram["psi"],
            config.input_drift,
        )


def _compare_with_previous(now: Mapping[str, Any], before: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    """Findings that need the statistics of the previous run."""
    for name, share in now["null"].items():
        previous_share = before["null"].get(name, share)
        if share - previous_share > config.null_rise:
            yield Finding(
                "nulls",
                STOP,
                f"{name} is missing or empty in {share:.0%} of rows (last run: {previous_share:.0%}): "
                "an export lost the values of a column",
                share - previous_share,
                config.null_rise,
            )
    if missing := [n for n in before["null"] if n not in now["null"]]:
        yield Finding("schema", STOP, f"column {missing[0]} is missing; the last run had it", len(missing), 0)
    if not config.items_low <= now["items"] / max(before["items"], 1) <= config.items_high:
        yield Finding(
            "catalogue",
            STOP,
            f"the catalogue has {now['items']:,} items (last run: {before['items']:,}): "
            "part of it is missing, or another shop's was added",
            now["items"] / max(before["items"], 1),
            config.items_low,
        )
    a, b = now["catalogue"], before["catalogue"]
    for name, length in b["mean_length"].items():
        if length and a["mean_length"].get(name, 0.0) < config.text_low * length:
            yield Finding(
                "catalogue",
                STOP,
                f"{name}s have {a['mean_length'].get(name, 0.0):.0f} characters on average "
                f"(last run: {length:.0f}): they were emptied or truncated",
                a["mean_length"].get(name, 0.0) / length,
                config.text_low,
            )
    for name, count in b["categories"].items():
        left = a["categories"].get(name, 0)
        if count >= config.category_items and left < config.category_low * count:
            yield Finding(
                "categories",
                STOP,
                f"category {name!r} has {left:,} items (last run: {count:,}): items are missing or it was renamed",
                left / count,
                config.category_low,
            )
    yield from _prices(a, b, config)


def _prices(now: Mapping[str, Any], before: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    pairs = [("all items", now["median_price"], before["median_price"])]
    pairs += [
        (f"category {n!r}", now["median_price_by_category"].get(n), price)
        for n, price in before["median_price_by_category"].items()
        if before["categories"].get(n, 0) >= config.category_items
    ]
    for name, price, previous in pairs:
        if price and previous and not 1 / config.price_factor < price / previous < config.price_factor:
            yield Finding(
                "prices",
                STOP,
                f"the median price of {name} is {price:,.2f} (last run: {previous:,.2f}): "
                "the unit (cents?) or the currency changed",
                price / previous,
                config.price_factor,
            )
            return
