"""Overlay: items written since the release, applied to copies of its arrays. New items are appended as new rows.

Rows of the release keep their numbers, so what a request in progress has looked up stays valid. The cost is memory: a
worker with any written item has its own copy of arrays that workers otherwise share, about 900 bytes per item, or 2,000
with companions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, F64, I32
from features.catalogue import TEXT_COLUMNS, Catalogue
from features.companions import Companions
from features.decay import ItemState
from features.kernels.strings import StringIndex, Strings, StringSequence
from features.linear import Linear
from features.neighbours import Neighbours
from features.sequence import SequenceModel
from features.table import Items
from features.text.vectors import Vectors
from serving.store import ItemFields, to_years

_NEAREST = 10
"""Number of items with similar text whose mean click rates and factors a new item gets."""
_COMPARED = 4096
"""Maximum number of items compared, evenly spaced over a larger catalogue: items may be written by the thousand."""


class _OverlaidTexts(StringSequence):
    """The release's strings, some of them replaced, followed by added ones; nothing is copied."""

    def __init__(self, base: Sequence[str], changed: Mapping[int, str], added: Sequence[str]) -> None:
        self._base, self._changed, self._added = base, changed, added

    def __len__(self) -> int:
        return len(self._base) + len(self._added)

    def _text(self, i: int) -> str:
        if i >= len(self._base):
            return self._added[i - len(self._base)]
        return self._changed[i] if i in self._changed else self._base[i]

    def __iter__(self) -> Iterator[str]:
        if self._changed:
            yield from (self._changed.get(i, s) for i, s in enumerate(self._base))
        else:
            yield from self._base
        yield from self._added


@dataclass(frozen=True)
class Overlay:
    """Items written since a release.

    written: fields by item id, in the order in which rows are added. vectors: float32[d] by item id, for items whose
    text has been encoded. near: cache of nearest items by vector, passed on to the next overlay of the same release.
    """

    written: Mapping[str, ItemFields]
    vectors: Mapping[str, F32]
    near: dict[bytes, I32] = field(default_factory=dict, repr=False, compare=False)

    def over(self, base: Items, state: ItemState) -> Items:
        """The release's items with the written ones. state: current item state, of the release or an earlier overlay.

        A category, brand or tag that the release has no code for is missing until the next nightly run; a new group of
        variants is known at once. A new item gets the mean rates of the items with the most similar text, and no
        neighbours.
        """
        known = base.catalogue.rows(list(self.written))
        ids = list(self.written)
        added = [i for i, row in zip(ids, known.tolist(), strict=True) if row < 0]
        changed = {int(row): self.written[i] for i, row in zip(ids, known.tolist(), strict=True) if row >= 0}
        catalogue = _catalogue(base.catalogue, changed, {i: self.written[i] for i in added})
        vectors = self._vectors(base, changed, added)
        n, k = len(base.catalogue), len(added)
        near = self._nearest(vectors, n, k)
        rates, factors = base.attribute_rates, base.factors
        items = replace(
            base,
            catalogue=catalogue,
            vectors=vectors,
            prior=_extend(base.prior, _mean(base.prior, near)),
            neighbours=_with_empty_rows(base.neighbours, k),
            state=_state(state, catalogue, n, k),
            attribute_rates=_extend(rates, _mean(rates, near)) if rates.size else rates,
            factors=_extend(factors, _mean(factors, near)) if factors.size else factors,
            sequence=self._sequence(base, added),
        )
        if base.words is not None:
            words = base.words.of(catalogue, [*changed, *range(n, n + k)])
            items = replace(
                items,
                words=base.words.over(dict(zip(changed, words[: len(changed)], strict=True)), words[len(changed) :]),
            )
        if (linear := base.linear) is not None:
            nothing = np.zeros((k, linear.speaking.shape[1]), np.float32)
            extended = Linear(
                _with_empty_rows(linear.into, k),
                _extend(linear.speaking, nothing),
                _extend(linear.spoken_to, nothing),
                _extend(linear.offered, np.full((k, linear.offered.shape[1]), -1)),
            )
            items = replace(items, linear=extended)
        if (companions := base.companions) is not None:
            items = replace(
                items,
                companions=Companions(
                    _with_empty_rows(companions.together, k),
                    _with_empty_rows(companions.goes_with, k),
                    _with_empty_rows(companions.following, k),
                    _extend(companions.repurchase_s, _mean(companions.repurchase_s, near)),
                ),
            )
        # Standardised with the release's mean and deviation: a new item must not shift every other item's numbers.
        items.__dict__["numbers"] = _extend(base.numbers, _standardised(base, catalogue.numbers[n : n + k]))
        return items

    def _sequence(self, base: Items, added: Sequence[str]) -> SequenceModel | None:
        """The sequence model with the new items, which are placed by their text; known items stay where they are."""
        model, d = base.sequence, base.vectors.code.shape[1]
        if model is None:
            return None
        missing = np.full(d, np.nan, np.float32)
        vectors = np.array([self.vectors.get(i, missing) for i in added], np.float32).reshape(len(added), d)
        new, items = Vectors.quantise(model.embed(vectors)), model.items
        return replace(model, items=Vectors(_extend(items.code, new.code), _extend(items.scale, new.scale)))

    def _vectors(self, base: Items, changed: Mapping[int, ItemFields], added: Sequence[str]) -> Vectors:
        d = base.vectors.code.shape[1]
        missing = np.full(d, np.nan, np.float32)
        rows = [
            row
            for row, item in changed.items()
            if base.catalogue.item_ids[row] in self.vectors and _changes_text(item, base.catalogue)
        ]
        ids = [*(base.catalogue.item_ids[row] for row in rows), *added]
        new = Vectors.quantise(np.array([self.vectors.get(i, missing) for i in ids], np.float32).reshape(len(ids), d))
        code = _extend(base.vectors.code, new.code[len(rows) :])
        scale = _extend(base.vectors.scale, new.scale[len(rows) :])
        code[rows], scale[rows] = new.code[: len(rows)], new.scale[: len(rows)]
        return Vectors(code, scale)

    def _nearest(self, vectors: Vectors, n: int, k: int) -> I32:
        """int32[k, <= _NEAREST]: the release's rows with text most similar to each new item; -1 if it has no vector."""
        sample = np.arange(0, n, max(1, -(-n // _COMPARED)), dtype=np.int32)
        m = min(_NEAREST, len(sample))
        out = np.full((k, m), -1, np.int32)
        for j in np.flatnonzero(vectors.scale[n : n + k] > 0).tolist():
            code = vectors.code[n + j].tobytes()
            if (best := self.near.get(code)) is None:
                cosine = vectors.cosines(sample, np.array([n + j], np.int32))[:, 0]
                cosine[np.isnan(cosine)] = -np.inf
                first = np.argpartition(-cosine, m - 1)[:m]
                best = self.near[code] = np.where(cosine[first] > -np.inf, sample[first], -1).astype(np.int32)
            out[j] = best
        return out


NO_OVERLAY = Overlay({}, {})
"""The overlay of a release without written items."""


def _changes_text(item: ItemFields, base: Catalogue) -> bool:
    """True if the written fields may change the text that is encoded."""
    return any(name in TEXT_COLUMNS for name in item.fields) or any(
        name not in (*base.number_names, *base.value_names) for name in item.attributes
    )


def _extend(array: NDArray[Any], rows: NDArray[Any]) -> NDArray[Any]:
    """A copy with rows inserted before the last one, which is the unknown item's."""
    return np.concatenate([array[:-1], rows.astype(array.dtype, copy=False), array[-1:]])


def _with_empty_rows(table: Neighbours, k: int) -> Neighbours:
    """The table with k rows for new items, which have nothing in it."""
    width = table.item.shape[1]
    return Neighbours(
        _extend(table.item, np.full((k, width), -1, np.int32)), _extend(table.weight, np.zeros((k, width), np.float32))
    )


def _catalogue(base: Catalogue, changed: Mapping[int, ItemFields], added: Mapping[str, ItemFields]) -> Catalogue:
    n, k = len(base), len(added)
    titles = {row: h.fields["title"] or base.item_ids[row] for row, h in changed.items() if "title" in h.fields}
    price, born = (_extend(a, np.full(k, np.nan)) for a in (base.price, base.available_from))
    category = _extend(base.category, np.full(k, len(base.category_names), np.int32))
    brand = _extend(base.brand, np.full(k, len(base.brand_names), np.int32))
    numbers = _extend(base.numbers, np.full((k, base.numbers.shape[1]), np.nan))
    values = _extend(base.values, np.full((k, base.values.shape[1]), np.nan)) if base.value_names else base.values
    born[n : n + k] = [item.at for item in added.values()]
    code_of = {
        name: {value: code for code, value in enumerate(names)}
        for name, names in (("category", base.category_names), ("brand", base.brand_names))
    }
    rows = {**changed, **dict(zip(range(n, n + k), added.values(), strict=True))}
    withdrawn = set(base.withdrawn.tolist())
    born[base.withdrawn] = np.inf  # retrieval treats them as not yet on sale
    for row, item in rows.items():
        fields = item.fields
        if "price" in fields:
            price[row] = np.nan if fields["price"] is None else fields["price"]
        if fields.get("available_from") is not None:
            born[row] = fields["available_from"]
        elif row in withdrawn:
            born[row] = base.available_from[row]
        for name, codes, names in (("category", category, base.category_names), ("brand", brand, base.brand_names)):
            if name in fields:
                codes[row] = code_of[name].get(fields[name], len(names))
        for name, value in item.attributes.items():
            if name in base.number_names:
                numbers[row, list(base.number_names).index(name)] = _number(value, name in base.date_names)
            elif name in base.value_names:
                values[row, list(base.value_names).index(name)] = _number(value, is_date=False)
        if fields.get("available", row not in withdrawn) is False:
            born[row] = np.inf
    group, group_names = _groups(base, rows, k)
    tags = _tags(base, list(added.values()))
    start = np.concatenate(
        [base.tag_start[:-1], base.tag_start[-2] + np.cumsum([len(t) for t in tags], dtype=np.int64)]
    )
    flat_tags = [t for item_tags in tags for t in item_tags]
    return replace(
        base,
        item_ids=_extend_ids(base.item_ids, list(added)),
        titles=_OverlaidTexts(base.titles, titles, [h.fields.get("title") or i for i, h in added.items()]),
        price=price,
        category=category,
        brand=brand,
        available_from=born,
        numbers=numbers,
        values=values,
        tag_start=np.append(start, start[-1]),
        tag=np.concatenate([base.tag[: base.tag_start[-2]], np.array(flat_tags, np.int32)]),
        group=group,
        group_names=group_names,
    )


def _groups(base: Catalogue, rows: Mapping[int, ItemFields], k: int) -> tuple[I32 | None, Sequence[str]]:
    """The groups with those of the written items, which may be new. rows: by row. k: number of added items."""
    written = {row: item.fields["group_id"] for row, item in rows.items() if "group_id" in item.fields}
    given = sorted({name for name in written.values() if name})
    if base.group is None and not given:
        return None, ()
    count = len(base.group_names)
    known = StringIndex.of(base.group_names).find(given).tolist()
    new = [name for name, code in zip(given, known, strict=True) if code < 0]
    names = _extend_ids(base.group_names, new) if new else base.group_names
    before = np.full(len(base) + 1, count, np.int32) if base.group is None else base.group
    group = _extend(before, np.full(k, count, np.int32))
    group[group == count] = len(names)
    code_of = {name: code for name, code in zip(given, known, strict=True) if code >= 0}
    code_of |= {name: count + number for number, name in enumerate(new)}
    for row, name in written.items():
        group[row] = code_of.get(name, len(names))
    return group, names


def _extend_ids(base: Sequence[str], added: Sequence[str]) -> Strings:
    """The release's ids followed by the new ones, without creating Python strings for the release's."""
    first, more = base if isinstance(base, Strings) else Strings.of(base), Strings.of(added)
    return Strings(
        np.concatenate([first.start, first.start[-1] + more.start[1:]]), np.concatenate([first.text, more.text])
    )


def _number(value: object, is_date: bool) -> float:
    if is_date:
        return to_years(value)
    return float(value) if isinstance(value, int | float) else np.nan


def _tags(base: Catalogue, added: Sequence[ItemFields]) -> list[list[int]]:
    """For each new item, the codes of its tags that the release knows."""
    if not added:
        return []
    code = {name: c for c, name in enumerate(base.tag_names)}
    out = []
    for item in added:
        values = (
            (a, v) for a, value in item.attributes.items() for v in (value if isinstance(value, list) else [value])
        )
        out.append(sorted({code[f"{a}={v}"] for a, v in values if f"{a}={v}" in code}))
    return out


def _mean(values: F32, near: I32) -> F32:
    """The mean over each new item's nearest items; NaN if there are no values."""
    # Row -1 is the unknown item, whose values are NaN.
    nearest = values[near].astype(np.float64)
    known = ~np.isnan(nearest)
    count = known.sum(axis=1)
    total = np.where(known, nearest, 0).sum(axis=1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _standardised(base: Items, numbers: F64) -> F64:
    """New items' numbers, standardised like the release's. Missing numbers get the release's value for missing.

    The release's standardisation is linear, so it follows from its lowest and highest raw numbers.
    """
    out = np.broadcast_to(base.numbers[-1], numbers.shape).copy()
    for c in range(numbers.shape[1]):
        raw = base.catalogue.numbers[:-1, c]
        known = np.flatnonzero(np.isfinite(raw))
        if not len(known):
            continue
        low, high = known[raw[known].argmin()], known[raw[known].argmax()]
        span = raw[high] - raw[low]
        slope = (base.numbers[high, c] - base.numbers[low, c]) / span if span > 0 else 0.0
        given = np.isfinite(numbers[:, c])
        out[given, c] = base.numbers[low, c] + (numbers[given, c] - raw[low]) * slope
    return out


def _state(state: ItemState, catalogue: Catalogue, n: int, k: int) -> ItemState:
    """The current sums, including those of items added earlier, with rows for newly added items."""
    old = len(state.category) - 1
    rows = n + k - old
    value = np.concatenate([state.value[:old], np.zeros((rows, *state.value.shape[1:])), state.value[old:]])
    latest = np.concatenate([state.latest[:old], np.zeros(rows), state.latest[old:]])
    return ItemState(value, latest, catalogue.category, state.n_categories)
