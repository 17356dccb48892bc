"""Products of the simulated shop that go together, and shoppers who add one to the item in their cart.

Kinds of products that serve the same occasion go together if they are of different departments: a teapot and a coffee
table, but not two lamps. A shopper who looks for something that goes with an item chooses one of these kinds, all with
the same probability, and of this kind the item by taste. Texts do not mention it, so it is learned from baskets alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from features.arrays import F64, I32, Bool
from offline.simulation.products import Products

_OCCASIONS = """
armchair, bookcase, floor lamp, reading lamp, throw, cushion, bookend
desk tray, pen stand, letter rack, paperweight, table lamp, satchel, side table
notebook, fountain pen, satchel, wallet, wristwatch
teapot, mug, coffee table, table runner, candle holder
salad bowl, serving platter, casserole, carafe, sideboard, table runner, pendant light
chopping board, spice jar, pepper mill, apron, seed tray
duvet cover, bedspread, pillow, quilt, night light, folding screen, dressing gown
soap dish, bath towel, bath mat, laundry basket, toiletry jar, washbag, wall sconce
planter, watering can, trowel, seed tray, bird feeder, bird bath, raincoat, bench
garden chair, hammock, fire bowl, wind chime, string light, picnic blanket, carafe
sleeping bag, camp stove, head torch, dry bag, lantern, backpack, beanie, jumper
suitcase, weekend bag, passport holder, planner, scarf, toiletry jar
exercise mat, kettlebell, foam roller, skipping rope, water bottle, duffel, massage tool
belt bag, backpack, jacket, raincoat, lunch box, coat stand
rocking chair, rocking horse, doll, puppet, building set, night light, blanket, rug
board game, jigsaw, memory game, card game, marble run, coffee table, serving platter
kite, picnic blanket, lunch box, tote, cardigan
necklace, bracelet, ring, brooch, pendant, bangle, charm, hand mirror, hairbrush
waistcoat, overshirt, cufflink set, pocket watch, wallet
sketchbook, pencil case, reading lamp, stool
candle, diffuser, throw, dressing gown, mug
curtain, rug, side table, wall sconce
"""
OCCASIONS: tuple[tuple[str, ...], ...] = tuple(tuple(line.split(", ")) for line in _OCCASIONS.strip().splitlines())
"""Kinds of products, nouns of `vocabulary.DEPARTMENTS`, that serve the same occasion."""
_CONSIDERED = 40
"""Items of a kind among which a shopper chooses, drawn at random if there are more."""

Rows = NDArray[np.intp]
Response = Callable[[Rows, I32], F64]
"""float64[n, m]: P(click) of items, int32[n, m], that are examined by the shoppers in some rows, intp[n]."""


@dataclass
class Complements:
    """Complements of each item. rng: separate, so that a shop without complements does not change."""

    stock: Products
    rng: np.random.Generator

    @cached_property
    def _items(self) -> dict[str, I32]:
        """Items of each kind, ascending."""
        nouns = np.array(self.stock.noun)
        return {noun: np.flatnonzero(nouns == noun).astype(np.int32) for noun in np.unique(nouns).tolist()}

    @cached_property
    def _partners(self) -> dict[str, tuple[str, ...]]:
        """The kinds that go with each kind of the stock, sorted."""
        department = {noun: int(self.stock.department[items[0]]) for noun, items in self._items.items()}
        return {
            noun: tuple(
                sorted(
                    {
                        other
                        for occasion in OCCASIONS
                        if noun in occasion
                        for other in occasion
                        if other in department and department[other] != own
                    }
                )
            )
            for noun, own in department.items()
        }

    def kinds_with(self, item: int, available: Bool) -> list[I32]:
        """The items of each kind that goes with an item and has items. available: bool[items]."""
        found = (self._items[noun] for noun in self._partners[self.stock.noun[item]])
        return [some for items in found if len(some := items[available[items]])]

    def choose(self, seed: I32, available: Bool, would_click: Response) -> tuple[Rows, I32]:
        """Rows of `seed`, ascending, and the item that is taken with each; rows that nothing goes with are left out.

        would_click: probabilities for the shoppers of these rows, which odds of the choice within a kind follow.
        """
        kinds = [self.kinds_with(item, available) for item in seed.tolist()]
        row = np.flatnonzero([bool(found) for found in kinds])
        considered = np.full((len(row), _CONSIDERED), -1, np.int32)
        for k, one in enumerate(row.tolist()):
            some = kinds[one][int(self.rng.integers(len(kinds[one])))]
            some = self.rng.permutation(some)[:_CONSIDERED]
            considered[k, : len(some)] = some
        score = np.log(would_click(row, np.maximum(considered, 0)))
        score += self.rng.gumbel(size=considered.shape)
        best = np.where(considered >= 0, score, -np.inf).argmax(axis=1)
        return row, considered[np.arange(len(row)), best]

    def probability(self, seed: int, available: Bool, click: F64) -> F64:
        """float64[items]: probability of each item to be taken with `seed`, of which all items together have 1, or 0.

        click: float64[items], P(click) by the shopper. Exact if no kind has more than 40 items.
        """
        out, kinds = np.zeros(len(self.stock)), self.kinds_with(seed, available)
        for items in kinds:
            out[items] += click[items] / click[items].sum() / len(kinds)
        return out
