"""Money that purchases bring: the one rule that experiments and earnings share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from features.arrays import F64
from features.kernels.strings import StringIndex
from offline.config import AttributeKind, EarningsConfig
from offline.data import load_items
from offline.runtime import DataError


class Prices(NamedTuple):
    """Money that a piece of each item brings: revenue and margin of a purchase in experiments and earnings.

    price, cost: float64[n + 1], NaN if unknown; the last entry is of other items. value: as in `EarningsConfig`.
    """

    items: StringIndex
    price: F64
    cost: F64
    value: str

    @classmethod
    def of(cls, directory: Path, attributes: Mapping[str, AttributeKind], config: EarningsConfig) -> Prices:
        """The prices of a data set. Raises DataError if it lacks the attribute that `config` names, and
        FileNotFoundError without a catalogue."""
        items = load_items(directory, attributes)
        price = _numbers(items, "price")
        if config.cost is not None:
            cost = _attribute(items, config.cost, "cost")
        elif config.margin is not None:
            cost = price - _attribute(items, config.margin, "margin")
        else:
            cost = np.full(len(price), np.nan)
        return cls(StringIndex.of(items["item_id"].to_pylist()), price, cost, config.value)

    @classmethod
    def unknown(cls) -> Prices:
        """No prices: the revenue of a purchase is its value, an amount, and no margin is known."""
        return cls(StringIndex.of([]), np.full(1, np.nan), np.full(1, np.nan), "amount")

    @property
    def has_margins(self) -> bool:
        """True if the margin of some item is known."""
        return bool(np.isfinite(self.cost).any())

    def money(self, item_ids: list[str], value: F64) -> tuple[F64, F64]:
        """float64[n], float64[n]: revenue and margin of purchases; negative for a return, NaN if unknown.

        value: of the events, NaN for none; a negative one is a return.
        """
        row = self.items.find(item_ids)
        price, cost = self.price[row], self.cost[row]
        sign = np.where(value < 0, -1.0, 1.0)
        if self.value == "amount":
            with np.errstate(divide="ignore", invalid="ignore"):
                pieces = np.maximum(np.round(np.abs(value) / price), 1.0)
            pieces = sign * np.where(np.isfinite(pieces), pieces, 1.0)
            revenue = np.where(np.isnan(value), price, value)
        else:
            pieces = np.where(np.isnan(value) | (self.value == "ignored"), sign, value)
            revenue = price * pieces
        return revenue, revenue - cost * pieces


def _attribute(items: pa.Table, name: str, key: str) -> F64:
    numeric = [f.name for f in items.schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
    if name not in numeric:
        raise DataError(
            f"earnings.{key}: {name!r} is not a numeric attribute of the catalogue; those are "
            f"{', '.join(numeric) or 'none'}. Give its type in features.attributes if it is read as a text"
        )
    return _numbers(items, name)


def _numbers(items: pa.Table, name: str) -> F64:
    if name not in items.column_names:
        return np.full(len(items) + 1, np.nan)
    values = items[name].cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.append(np.where(np.isfinite(values), values, np.nan), np.nan)
