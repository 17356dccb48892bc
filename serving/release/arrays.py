"""Item arrays of a release, `arrays/*.npy`, memory-mapped by every worker."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.arrays import F32, I32
from features.catalogue import Catalogue
from features.companions import Companions
from features.decay import HALF_LIVES_S, ItemState
from features.kernels.strings import Strings
from features.linear import Linear
from features.log import Kind
from features.neighbours import Neighbours
from features.segments import Segments
from features.sequence import WEIGHTS, WIDTH, SequenceModel, tower_size
from features.table import Items
from features.text.inverted_lists import InvertedLists
from features.text.vectors import Vectors
from features.text.vocabulary import Vocabulary
from serving.release.manifest import MANIFEST, Manifest, ReleaseError

_COMPANIONS = ("together", "goes_with", "following")
"""The tables of `Companions`, by which their arrays are named."""


def to_arrays(items: Items) -> dict[str, NDArray[Any]]:
    """The arrays of `items` by file name, without custom features and columns."""
    c = items.catalogue
    out: dict[str, NDArray[Any]] = {
        "price": c.price,
        "category": c.category,
        "brand": c.brand,
        "available_from": c.available_from,
        "numbers": c.numbers,
        "tag_start": c.tag_start,
        "tag": c.tag,
        "vector_code": items.vectors.code,
        "vector_scale": items.vectors.scale,
        "prior": items.prior,
        "attribute_rates": items.attribute_rates,
        "factors": items.factors,
        "segment_centre": items.segments.centre,
        "segment_log_share": items.segments.log_share,
        "neighbour_item": items.neighbours.item,
        "neighbour_weight": items.neighbours.weight,
        "state_value": items.state.value,
        "state_latest": items.state.latest,
    }
    if c.group is not None:
        out |= {"group": c.group, **Strings.of(c.group_names).arrays("group_names")}
    if c.value_names:
        out |= {"values": c.values, **Strings.of(c.value_names).arrays("value_names")}
    if len(c.withdrawn):
        out["withdrawn"] = c.withdrawn
    if items.inverted is not None:
        lists = items.inverted
        out |= {"list_centre_code": lists.centre.code, "list_centre_scale": lists.centre.scale}
        out |= {"list_start": lists.start, "list_row": lists.row}
    if (w := items.words) is not None:
        out |= w.names.arrays("word_names") | {"word_rarity": w.rarity, "word_strength": w.strength}
        out |= {"word_code": w.vectors.code, "word_scale": w.vectors.scale}
        out |= {"item_word_start": w.start, "item_word": w.word}
    if (linear := items.linear) is not None:
        out |= {"linear_item": linear.into.item, "linear_weight": linear.into.weight, "linear_offered": linear.offered}
        out |= {"linear_speaking": linear.speaking, "linear_spoken_to": linear.spoken_to}
    if (companions := items.companions) is not None:
        for name in _COMPANIONS:
            table = getattr(companions, name)
            out |= {f"{name}_item": table.item, f"{name}_weight": table.weight}
        out["repurchase_s"] = companions.repurchase_s
    if (model := items.sequence) is not None:
        out |= {"sequence_weights": model.weights, "sequence_tower": model.tower}
        out |= {"sequence_code": model.items.code, "sequence_scale": model.items.scale}
    for name, strings in (
        ("item_ids", c.item_ids),
        ("titles", c.titles),
        ("category_names", c.category_names),
        ("brand_names", c.brand_names),
        ("number_names", c.number_names),
        ("tag_names", c.tag_names),
        ("date_names", c.date_names),
    ):
        out |= Strings.of(strings).arrays(name)
    return {name: np.ascontiguousarray(array) for name, array in out.items()}


class Arrays:
    """Reads the arrays of a release by name and checks their dtype and shape (None: any size)."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest

    def __call__(self, name: str, dtype: type, *shape: int | None) -> NDArray[Any]:
        """The array `name`, read-only. Raises ReleaseError if it is missing or has another dtype or shape."""
        file = f"arrays/{name}.npy"
        if file not in self.manifest.files:
            raise ReleaseError(f"{self.path / MANIFEST}: does not list {file}; rebuild the release")
        try:
            # A plain view, because numba and numpy treat `memmap` as a separate, slower type.
            array: NDArray[Any] = np.asarray(np.load(self.path / file, mmap_mode="r", allow_pickle=False))
        except (ValueError, OSError, EOFError) as e:
            raise ReleaseError(f"{self.path / file} is not a valid array: {e}") from e
        expected = tuple(size if want is None else want for size, want in zip(array.shape, shape, strict=False))
        if array.dtype != dtype or len(array.shape) != len(shape) or array.shape != expected:
            raise ReleaseError(
                f"{self.path / file}: {array.dtype}{list(array.shape)}, expected {np.dtype(dtype)}"
                f"{['any' if s is None else s for s in shape]}: rebuild the release"
            )
        return array

    def has(self, name: str) -> bool:
        """True if the release has an array of this name."""
        return f"arrays/{name}.npy" in self.manifest.files

    def within(self, name: str, array: NDArray[Any], low: int, high: int) -> NDArray[Any]:
        """Return `array` if all values are in [low, high), else raise: compiled code uses them as indices unchecked."""
        if array.size and not (low <= array.min() and array.max() < high):
            raise ReleaseError(
                f"{self.path}/arrays/{name}.npy: holds {array.min()} to {array.max()}, expected {low} to {high - 1}: "
                "rebuild the release"
            )
        return array

    def strings(self, name: str, count: int | None) -> Strings:
        """Strings stored as bytes and start offsets. count: the expected number of strings; None for any number."""
        start = self(f"{name}_start", np.int64, None if count is None else count + 1)
        text = self(f"{name}_text", np.uint8, None)
        return Strings(self._ascending(f"{name}_start", start, len(text)), text)

    def _ascending(self, name: str, start: NDArray[Any], end: int) -> NDArray[Any]:
        if not len(start) or start[0] != 0 or start[-1] != end or (np.diff(start) < 0).any():
            raise ReleaseError(f"{self.path}/arrays/{name}.npy: is not ascending from 0 to {end}: rebuild the release")
        return start


def from_arrays(read: Arrays) -> Items:
    """Items read from their arrays; inverse of `to_arrays`. Raises ReleaseError for a missing or invalid array."""
    n, d = read.manifest.items, read.manifest.dimension
    category_names, brand_names = list(read.strings("category_names", None)), list(read.strings("brand_names", None))
    number_names, tag_names = list(read.strings("number_names", None)), list(read.strings("tag_names", None))
    category = read.within("category", read("category", np.int32, n + 1), 0, len(category_names) + 1)
    group, group_names = _groups(read, n)
    tag = read.within("tag", read("tag", np.int32, None), 0, len(tag_names))
    value_names = list(read.strings("value_names", None)) if read.has("values") else []
    catalogue = Catalogue(
        item_ids=read.strings("item_ids", n),
        titles=read.strings("titles", n),
        price=read("price", np.float64, n + 1),
        category=category,
        category_names=category_names,
        brand=read.within("brand", read("brand", np.int32, n + 1), 0, len(brand_names) + 1),
        brand_names=brand_names,
        available_from=read("available_from", np.float64, n + 1),
        numbers=read("numbers", np.float64, n + 1, len(number_names)),
        number_names=number_names,
        tag_start=read._ascending("tag_start", read("tag_start", np.int64, n + 2), len(tag)),
        tag=tag,
        tag_names=tag_names,
        date_names=list(read.strings("date_names", None)),
        group=group,
        group_names=group_names,
        values=read("values", np.float64, n + 1, len(value_names)) if value_names else np.empty((0, 0)),
        value_names=value_names,
        withdrawn=_withdrawn(read, n),
    )
    near = read.within("neighbour_item", read("neighbour_item", np.int32, n + 1, None), -1, n)
    entities = n + 1 + len(category_names) + 1 + 1
    state = ItemState(
        read("state_value", np.float64, entities, len(Kind), len(HALF_LIVES_S)),
        read("state_latest", np.float64, entities),
        category,
        len(category_names),
    )
    vectors = Vectors(read("vector_code", np.int8, n + 1, d), read("vector_scale", np.float32, n + 1))
    neighbours = Neighbours(near, read("neighbour_weight", np.float32, n + 1, near.shape[1]))
    rates = read("attribute_rates", np.float32, None, None)
    if rates.size and rates.shape != (n + 1, len(catalogue.by_attribute)):
        raise ReleaseError(
            f"{read.path}/arrays/attribute_rates.npy: {list(rates.shape)}, expected "
            f"{[n + 1, len(catalogue.by_attribute)]}: rebuild the release"
        )
    factors = read("factors", np.float32, None, None)
    if factors.size and len(factors) != n + 1:
        raise ReleaseError(
            f"{read.path}/arrays/factors.npy: {len(factors)} rows, expected {n + 1}: rebuild the release"
        )
    prior = read("prior", np.float32, n + 1)
    return Items(
        catalogue,
        vectors,
        prior,
        neighbours,
        state,
        rates,
        factors,
        _segments(read, factors),
        inverted=_inverted(read, n, d),
        words=_words(read, n, d),
        companions=_companions(read, n),
        linear=_linear(read, n),
        sequence=_sequence(read, n, d),
    )


def _sequence(read: Arrays, n: int, d: int) -> SequenceModel | None:
    """The sequence model; None for a release that was made without."""
    if not read.has("sequence_weights"):
        return None
    weights, tower = (_finite(read, "sequence_weights", WEIGHTS), _finite(read, "sequence_tower", tower_size(d)))
    code, scale = read("sequence_code", np.int8, n + 1, WIDTH), read("sequence_scale", np.float32, n + 1)
    return SequenceModel(weights, Vectors(code, scale), tower)


def _finite(read: Arrays, name: str, size: int) -> F32:
    """float32[size]. Raises ReleaseError for a value that is not finite, which would make every score missing."""
    array = read(name, np.float32, size)
    if not np.isfinite(array).all():
        raise ReleaseError(f"{read.path}/arrays/{name}.npy: a value is not finite: rebuild the release")
    return array


def _companions(read: Arrays, n: int) -> Companions | None:
    """The companions of each item; None for a release that was made without."""
    if not read.has("repurchase_s"):
        return None
    together, goes_with, following = (_table(read, name, n) for name in _COMPANIONS)
    return Companions(together, goes_with, following, read("repurchase_s", np.float32, n + 1))


def _linear(read: Arrays, n: int) -> Linear | None:
    """The linear item-to-item model; None for a release that was made without."""
    if not read.has("linear_item"):
        return None
    speaking = read("linear_speaking", np.float32, n + 1, None)
    spoken_to = read("linear_spoken_to", np.float32, n + 1, speaking.shape[1])
    offered = read.within("linear_offered", read("linear_offered", np.int32, n + 1, None), -1, n)
    return Linear(_table(read, "linear", n), speaking, spoken_to, offered)


def _table(read: Arrays, name: str, n: int) -> Neighbours:
    item = read.within(f"{name}_item", read(f"{name}_item", np.int32, n + 1, None), -1, n)
    return Neighbours(item, read(f"{name}_weight", np.float32, n + 1, item.shape[1]))


def _groups(read: Arrays, n: int) -> tuple[I32 | None, Sequence[str]]:
    """The groups of variants as in `Catalogue`; (None, ()) for a release without any."""
    if not read.has("group"):
        return None, ()
    names = read.strings("group_names", None)
    return read.within("group", read("group", np.int32, n + 1), 0, len(names) + 1), names


def _withdrawn(read: Arrays, n: int) -> I32:
    """Rows of the items that must not be in results; none for a release without such items."""
    if not read.has("withdrawn"):
        return np.empty(0, np.int32)
    return read.within("withdrawn", read("withdrawn", np.int32, None), 0, n)


def _words(read: Arrays, n: int, d: int) -> Vocabulary | None:
    """The vocabulary; None for a release without query features."""
    if not read.has("word_rarity"):
        return None
    rarity = read("word_rarity", np.float32, None)
    count = len(rarity)
    word = read.within("item_word", read("item_word", np.int32, None), 0, count)
    return Vocabulary(
        read.strings("word_names", count),
        rarity,
        Vectors(read("word_code", np.int8, count, d), read("word_scale", np.float32, count)),
        read("word_strength", np.float32, count),
        read._ascending("item_word_start", read("item_word_start", np.int64, n + 2), len(word)),
        word,
    )


def _segments(read: Arrays, factors: F32) -> Segments:
    """The segments; empty for a release whose ranker was trained without them."""
    if not read.has("segment_centre"):
        return Segments.none()
    centre = read("segment_centre", np.float32, None, None)
    if len(centre) and centre.shape[1] != factors.shape[1]:
        raise ReleaseError(
            f"{read.path}/arrays/segment_centre.npy: {centre.shape[1]} columns, expected {factors.shape[1]} as "
            "in factors.npy: rebuild the release"
        )
    return Segments(centre, read("segment_log_share", np.float32, len(centre)))


def _inverted(read: Arrays, n: int, d: int) -> InvertedLists | None:
    """The inverted lists; None for a release with few enough items to need none."""
    if not read.has("list_start"):
        return None
    row = read.within("list_row", read("list_row", np.int32, None), 0, n)
    start = read._ascending("list_start", read("list_start", np.int64, None), len(row))
    if len(start) < 2:
        raise ReleaseError(f"{read.path}/arrays/list_start.npy: holds no list: rebuild the release")
    centre = Vectors(
        read("list_centre_code", np.int8, len(start) - 1, d), read("list_centre_scale", np.float32, len(start) - 1)
    )
    return InvertedLists(centre, start, row)
