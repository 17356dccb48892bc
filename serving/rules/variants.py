"""Variants of one product in a list: at most one of them, and none beside one that the shopper has just bought.

A variant is an item with a `group_id`, such as a shirt in one size and colour. Of the variants in a list, the one with
the best score remains; if rules boost, bury or pin items, after these. For some days after a purchase, the other
variants of what was bought are left out, so that a shopper is not offered the same shirt in another size. The bought
variant itself stays, because it may be bought again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct
from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from features.arrays import F64, I32, I64, Bool
from features.catalogue import Catalogue
from features.context import NO_SEEDS
from features.history import History
from features.log import Kind
from serving.rules.conditions import Attributes, Mask
from serving.rules.rules import LISTED, Plan, Removed, to_struct

AFTER_PURCHASE_DAYS = 30.0
"""Days for which the other variants of a bought product are left out, unless a setting or request says otherwise."""
_DAY_S = 86400.0
ON_PAGE, OF_ITEMS = "page", "items"
"""Paths of what leaves out the items of earlier lists of a page, and other variants of the items of the request."""
_NONE = np.empty(0, np.int32)
_MOST_RETRIEVED = 5000
"""Maximum number of items that a source is asked for, whatever the number of variants."""


class Variants(Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """Which variants of a product, items with the same `group_id`, may be in a list.

    keep: `one`, the one with the best score, or `all`. By default one in recommendations and in similar items, and all
    of the candidates of /v1/rank. after_purchase_days: days for which the other variants of a product that the shopper
    bought are left out; 0 to show them. By default 30, and 0 if all variants are kept.
    """

    keep: Literal["one", "all"] | None = None
    after_purchase_days: Annotated[float, Meta(ge=0, le=3650)] | None = None


VariantSettings = Annotated[
    Variants,
    PlainValidator(partial(to_struct, Variants)),
    PlainSerializer(msgspec.to_builtins),
    WithJsonSchema({"type": "object", "description": "The same as `variants` in a request; see docs/variants.md."}),
]
"""`Variants` as a field of the configuration."""
Source = tuple[str, Variants]
"""Settings with their path in the request or configuration."""


@dataclass(frozen=True)
class VariantPlan:
    """The treatment of variants in one list. Paths are those of the settings, for `explain`.

    keep: path, None if all variants are kept. bought: int32, rows of the items that the shopper bought recently.
    bought_groups: int32, their groups, ascending. group: int32[n + 1], as in `Catalogue`. taken: int32, rows of the
    items of earlier lists of a page. seed_groups: int32, groups of the items that the request is for.
    """

    group: I32
    alone: int
    keep: str | None
    after_purchase: str
    bought: I32
    bought_groups: I32
    taken: I32 = field(default_factory=lambda: _NONE)
    seed_groups: I32 = field(default_factory=lambda: _NONE)

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        sources: Sequence[Source],
        keep: Literal["one", "all"],
        history: History,
        at: float,
        seeds: I32 = NO_SEEDS,
    ) -> VariantPlan | None:
        """The plan for a shopper; None if it would never leave anything out.

        sources: settings, those that take precedence first. keep: used if none of them sets it. at: Unix seconds.
        seeds: as in `Context`; other variants of their products are left out, unless all are kept.
        """
        if catalogue.group is None:
            return None
        default = sources[-1][0]
        kept_by, kept = next(((p, v.keep) for p, v in sources if v.keep is not None), (default, keep))
        days_path, days = next(
            ((p, v.after_purchase_days) for p, v in sources if v.after_purchase_days is not None),
            (default, AFTER_PURCHASE_DAYS if kept == "one" else 0.0),
        )
        alone = len(catalogue.group_names)
        bought = _bought(history, at - days * _DAY_S) if days else _NONE
        groups, of_seeds = (_groups_of(catalogue.group, rows, alone) for rows in (bought, seeds))
        if kept == "all" and not len(groups):
            return None
        keep_one = f"{kept_by}.keep" if kept == "one" else None
        after_purchase = f"{days_path}.after_purchase_days"
        of_seeds = of_seeds if keep_one else _NONE
        return cls(catalogue.group, alone, keep_one, after_purchase, bought, groups, seed_groups=of_seeds)

    def _removals(self) -> list[tuple[str, Callable[[I32], Bool]]]:
        """The reasons to leave out items, each with its path.

        A reason is a function from int32 rows (-1 if unknown) to bool, True for an item that is left out.
        """
        out: list[tuple[str, Callable[[I32], Bool]]] = []
        if len(self.taken):
            out.append((ON_PAGE, self._is_taken))
        if len(self.bought_groups):
            out.append((self.after_purchase, self._is_other_of_bought))
        if len(self.seed_groups):
            out.append((OF_ITEMS, self._is_other_of_seed))
        return out

    def _is_taken(self, item: I32) -> Bool:
        taken: Bool = np.isin(item, self.taken)
        if self.keep is not None:
            taken |= np.isin(self.group[item], _groups_of(self.group, self.taken, self.alone))
        return taken

    def _is_other_of_bought(self, item: I32) -> Bool:
        return np.isin(self.group[item], self.bought_groups) & ~np.isin(item, self.bought)

    def _is_other_of_seed(self, item: I32) -> Bool:
        return np.isin(self.group[item], self.seed_groups)

    def first(self, item: I32) -> Bool:
        """bool, like `item`: True for the first of each group, and for items without a group."""
        return first_of_group(self.group[item], self.alone)

    def offered(self, rows: I32) -> I32:
        """The rows in the order in which a candidate source offers them: the best variant of each product, then others.

        rows: best first. Other variants of what was bought and of seeds are not offered. Items of earlier lists of a
        page are, so that its lists can have the same candidates.
        """
        if len(self.bought_groups):
            rows = rows[~self._is_other_of_bought(rows)]
        if len(self.seed_groups):
            rows = rows[~self._is_other_of_seed(rows)]
        if self.keep is None:
            return rows
        first = self.first(rows)
        return np.concatenate([rows[first], rows[~first]])

    @property
    def offer(self) -> object:
        """A key of what `offered` and `candidates_for` depend on, besides the catalogue."""
        return self.keep is None, self.bought.tobytes(), self.seed_groups.tobytes()

    def candidates_for(self, size: int) -> int:
        """The number of items that a source has to find so that about `size` products are among them."""
        if self.keep is None:
            return size
        in_groups = int(np.count_nonzero(self.group[:-1] != self.alone))
        products = len(self.group) - 1 - in_groups + self.alone
        return max(size, min(_MOST_RETRIEVED, -(-size * (len(self.group) - 1) // max(products, 1))))

    def apply(self, item_ids: Sequence[str], item: I32) -> tuple[I64, list[Removed]]:
        """Choose from a list without rules: (positions that remain, ascending; removed items).

        item: int32, catalogue rows, best first.
        """
        removed, remains = list[Removed](), np.ones(len(item), np.bool_)
        for path, is_left_out in self._removals():
            out = remains & is_left_out(item)
            removed.append(_removed(path, item_ids, np.flatnonzero(out)))
            remains &= ~out
        kept = np.flatnonzero(remains)
        if self.keep is not None:
            first = self.first(item[kept])
            removed.append(_removed(self.keep, item_ids, kept[~first]))
            kept = kept[first]
        return kept, removed

    def with_rules(self, plan: Plan, attributes: Attributes) -> Plan:
        """The rules with those of variants: purchases as the last filter, and one per group as the first cap."""
        filters, caps = (*plan.filters, *((path, _not(out)) for path, out in self._removals())), plan.caps
        if self.keep is not None:
            # Before other caps, which would count variants that are not shown.
            caps = ((self.keep, attributes.text_attribute("group_id", self.keep), 1), *caps)
        return replace(plan, filters=filters, caps=caps)

    def without(self, taken: I32) -> VariantPlan:
        """The plan that also leaves out items, and their variants unless all are kept. taken: int32, catalogue rows."""
        return replace(self, taken=taken)


def only_without(taken: I32, catalogue: Catalogue) -> VariantPlan:
    """A plan for a list of all variants that leaves out items. taken: int32, catalogue rows."""
    group = np.zeros(len(catalogue) + 1, np.int32)
    return VariantPlan(group, 0, None, "", _NONE, _NONE, taken)


def _not(is_left_out: Callable[[I32], Bool]) -> Mask:
    return lambda listed, at: ~is_left_out(listed.item)


def first_of_group(code: I32, alone: int) -> Bool:
    """bool, like `code`: True for the first of each group. code: int32, `alone` for an item without a group."""
    first: Bool = code == alone
    first[np.unique(code, return_index=True)[1]] = True
    return first


def _groups_of(group: I32, rows: I32, alone: int) -> I32:
    """int32, ascending: the groups of items, without that of items without a group. rows: -1 if unknown."""
    groups: I32 = np.unique(group[rows])
    out: I32 = groups[groups != alone]
    return out


def _bought(history: History, since: float) -> I32:
    """int32, distinct: catalogue rows of the items bought from a time on."""
    at: F64 = history.at
    return np.unique(history.item[(history.kind == Kind.PURCHASE) & (at >= since) & (history.item >= 0)])


def _removed(path: str, item_ids: Sequence[str], positions: I64) -> Removed:
    return Removed(path, len(positions), [item_ids[k] for k in positions[:LISTED].tolist()])
