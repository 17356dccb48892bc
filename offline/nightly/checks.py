"""Checks of a night's data before anything is learnt from them: each holds a number against its history and a limit.

A check that fails stops the night; the live release stays. The findings are written as JSON and printed as a table,
each with its cause in a sentence. A check without enough history says nothing: a first night has none.
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


class Finding(NamedTuple):
    """What a check found. level: `stop` or `warn`. value and limit: the number and what it was held against."""

    check: str
    level: str
    message: str
    value: float | None = None
    limit: float | None = None


def check_statistics(
    now: Mapping[str, Any], before: Mapping[str, Any] | None, config: CheckConfig, clock: float
) -> list[Finding]:
    """What is wrong with statistics (`statistics.of`), given last night's, or None for a first night.

    clock: Unix seconds. Failures come first; those of `accept` are warnings.
    """
    found = [
        *_time(now, config, clock),
        *_volumes(now, config),
        *_keys(now, config),
        *_bot(now, config),
        *_inputs(now, config),
        *(_against(now, before, config) if before is not None else ()),
    ]
    return sorted((accept(f, config) for f in found), key=lambda f: f.level != STOP)


def accept(finding: Finding, config: CheckConfig) -> Finding:
    """The finding, a warning where the configuration accepts it."""
    return finding._replace(level=WARN) if finding.check in config.accept else finding


def check_disk(directory: Path, last_bytes: int, config: CheckConfig) -> list[Finding]:
    """Whether there is room for a night like the last."""
    free = shutil.disk_usage(directory).free
    if free >= config.free_disk * last_bytes:
        return []
    return [
        accept(
            Finding(
                "disk",
                STOP,
                f"{free / 1e6:,.0f} MB are free in {directory}, the last night took {last_bytes / 1e6:,.0f} MB: "
                "make room",
                free,
                config.free_disk * last_bytes,
            ),
            config,
        )
    ]


def check_drift(drift: Mapping[str, float], config: CheckConfig) -> list[Finding]:
    """What is wrong with the features' drift (`statistics.feature_drift`)."""
    beyond = sorted((n for n, value in drift.items() if value > config.feature_drift), key=lambda n: -drift[n])
    if not beyond:
        return []
    share = len(beyond) / len(drift)
    most = ", ".join(f"{n} {drift[n]:.1f}" for n in beyond[:3])
    level = STOP if share > config.drifted_features else WARN
    return [
        accept(
            Finding(
                "feature_drift",
                level,
                f"{len(beyond)} of {len(drift)} features of the test lists differ from those learnt "
                f"from (PSI: {most}): did the meaning of a column change?",
                share,
                config.drifted_features,
            ),
            config,
        )
    ]


def raise_if_stopped(findings: Sequence[Finding], report: Path) -> None:
    """Raises ChecksFailed with every cause where any of the findings stops the night."""
    causes = [f"  {f.check}: {f.message}" for f in findings if f.level == STOP]
    if causes:
        names = " ".join(f"--accept {name}" for name in dict.fromkeys(f.check for f in findings if f.level == STOP))
        raise ChecksFailed(
            "the data checks stopped the night; the live release stays\n"
            + "\n".join(causes)
            + f"\nall findings: {report}. Mend the data and start again; if they are right as they are: {names}"
        )


def last_statistics(directory: Path, run: str, until: float) -> dict[str, Any] | None:
    """Statistics of the latest night that passed its checks, other than run `run`, up to `until`; None for none."""
    kept = []
    for path in directory.glob("*.json"):
        try:
            found = json.loads(path.read_text("utf-8"))
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("run") != run and found.get("until", np.inf) <= until:
            kept.append((found["until"], path.stat().st_mtime, path.name, found))
    return dict(max(kept, key=lambda k: k[:3])[3]) if kept else None


def keep_statistics(directory: Path, run: str, statistics: Mapping[str, Any], most: int = 60) -> None:
    """Put a night's statistics where later ones find them; the oldest beyond `most` are removed."""
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
            f"{now['future']:,} events lie in the future, the latest {now['latest'] - clock:,.0f} s "
            "ahead of this clock: a clock or a time zone is wrong where they were logged",
            now["future"],
            0,
        )
    age = clock - now["latest"]
    if config.max_age_s is not None and age > config.max_age_s:
        yield Finding(
            "age", STOP, f"the newest event is {age / 3600:,.1f} hours old: no new events arrive", age, config.max_age_s
        )
    early = now["keys"]["actions before their list"]
    if early > config.before_list:
        yield Finding(
            "clock",
            STOP,
            f"{early:.0%} of the last day's clicks and purchases come before the list they belong to: "
            "the clocks of what logs lists and what logs actions disagree",
            early,
            config.before_list,
        )


def _volumes(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    days = min(now["span_days"] - 1, 14)
    if days - 1 < config.history_days:
        return
    # The first day of a log is seldom a whole one.
    for kind, counts in now["per_day"].items():
        today, before = counts[0], counts[1:days]
        low, high = min(before), max(before)
        if kind != "events" and low < 50:
            continue
        if today < config.volume_low * low or (today > config.volume_high * high and high >= 50):
            yield Finding(
                "volume",
                STOP,
                f"{today:,} {kind} on the last day; the {len(before)} days before had {low:,} to "
                f"{high:,}: part of the log is missing or there twice",
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
            f"{rate:.2%} of what was shown on the last day was clicked, {usual:.2%} before: clicks "
            "are lost, logged twice, or made by a machine",
            rate / usual,
            config.click_rate,
        )


def _keys(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    keys, repeated = now["keys"], now["repeated"]
    if keys["repeated event ids"]:
        yield Finding(
            "keys",
            STOP,
            f"{keys['repeated event ids']:,.0f} event ids stand in the log more than once: a file was "
            "brought in twice, or ids are made up again",
            keys["repeated event ids"],
            0,
        )
    if repeated["share"] > config.repeated:
        yield Finding(
            "duplicates",
            STOP,
            f"{repeated['share']:.0%} of the {repeated['rows']:,} events of the day "
            f"{repeated['days_ago']} before the last stand in the log again, same user, item and time of day: a day "
            "was brought in twice",
            repeated["share"],
            config.repeated,
        )
    if keys["lists of several users"] > config.several_users:
        yield Finding(
            "keys",
            STOP,
            f"{keys['lists of several users']:.0%} of lists have events of more than one user: request "
            "ids are used again",
            keys["lists of several users"],
            config.several_users,
        )
    unknown = now["null"]["event item_id (not in the catalogue)"]
    if unknown > config.unknown_items:
        yield Finding(
            "keys",
            STOP,
            f"{unknown:.0%} of events are of items that the catalogue does not hold: it is another "
            "shop's, or lacks a part",
            unknown,
            config.unknown_items,
        )


def _bot(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    top = now["top_user"]
    if top["actions"] >= config.bot_actions and top["share"] > config.bot_share:
        yield Finding(
            "bot",
            STOP,
            f"user {top['user']!r} made {top['actions']:,} of the last day's clicks and purchases, "
            f"{top['share']:.0%}: a bot? Take that user's events out",
            top["share"],
            config.bot_share,
        )


def _inputs(now: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    for name, held in now["inputs"].items():
        if held["psi"] <= max(0.25, 2 * held["psi_before"]) or sum(held["now"]) < 100 or sum(held["usual"]) < 100:
            continue
        level = STOP if held["psi"] > config.input_drift else WARN
        share = [np.array(held[k], np.float64) / max(sum(held[k]), 1) for k in ("usual", "now")]
        most = int(np.argmax(np.abs(share[1] - share[0])))
        yield Finding(
            "input_drift",
            level,
            f"{name}: {held['bins'][most]} is {share[1][most]:.0%} of the last day, "
            f"{share[0][most]:.0%} of the week before (PSI {held['psi']:.2f})",
            held["psi"],
            config.input_drift,
        )


def _against(now: Mapping[str, Any], before: Mapping[str, Any], config: CheckConfig) -> Iterator[Finding]:
    """What only last night's statistics can tell."""
    for name, share in now["null"].items():
        was = before["null"].get(name, share)
        if share - was > config.null_rise:
            yield Finding(
                "nulls",
                STOP,
                f"{name} is missing or empty in {share:.0%} of rows, last night in {was:.0%}: an export "
                "lost a column's values",
                share - was,
                config.null_rise,
            )
    if gone := [n for n in before["null"] if n not in now["null"]]:
        yield Finding("schema", STOP, f"column {gone[0]} was there last night and is not now", len(gone), 0)
    if not config.items_low <= now["items"] / max(before["items"], 1) <= config.items_high:
        yield Finding(
            "catalogue",
            STOP,
            f"the catalogue holds {now['items']:,} items, last night {before['items']:,}: part of "
            "it is missing, or another shop's was added",
            now["items"] / max(before["items"], 1),
            config.items_low,
        )
    a, b = now["catalogue"], before["catalogue"]
    for name, length in b["mean_length"].items():
        if length and a["mean_length"].get(name, 0.0) < config.text_low * length:
            yield Finding(
                "catalogue",
                STOP,
                f"{name}s have {a['mean_length'].get(name, 0.0):.0f} characters on average, last "
                f"night {length:.0f}: they were emptied or cut",
                a["mean_length"].get(name, 0.0) / length,
                config.text_low,
            )
    for name, count in b["categories"].items():
        left = a["categories"].get(name, 0)
        if count >= config.category_items and left < config.category_low * count:
            yield Finding(
                "categories",
                STOP,
                f"category {name!r} has {left:,} items, last night {count:,}: its items are missing or were renamed",
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
    for name, price, was in pairs:
        if price and was and not 1 / config.price_factor < price / was < config.price_factor:
            yield Finding(
                "prices",
                STOP,
                f"the median price of {name} is {price:,.2f}, last night {was:,.2f}: another unit (cents?) or currency",
                price / was,
                config.price_factor,
            )
            return
