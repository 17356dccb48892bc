"""Items as storefronts write them, and their validation. Each field is stored separately, so that writes merge."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from features.bounds import (
    ATTRIBUTE_NAME,
    ATTRIBUTES,
    ITEM_MOMENTS,
    MAX_NUMBER,
    TEXT_CHARACTERS,
    check_attribute_names,
    is_within,
)
from features.catalogue import TEXT_COLUMNS
from serving.api.decoding import Id, Refusal, part_id, to_refusal
from serving.api.events import Rejected, microseconds

Text = Annotated[str, Meta(max_length=TEXT_CHARACTERS)]
_NAME = Annotated[str, Meta(min_length=1, max_length=ATTRIBUTE_NAME)]
_NUMBER = Annotated[float, Meta(ge=-MAX_NUMBER, le=MAX_NUMBER)]
_VALUE = bool | _NUMBER | Text | Annotated[list[Text], Meta(max_length=ATTRIBUTES)] | None


class ItemIn(Struct, forbid_unknown_fields=True):
    """A new item, or changes to an existing one. Omitted fields stay unchanged; null clears a field.

    available: false removes the item from all results, true restores it. available_from: ISO 8601 or Unix seconds;
    defaults to now for a new item. attributes: values by catalogue column name, each a number, a text, a list of texts
    or a boolean. group_id: the product of which the item is a variant; the same for all of its sizes and colours.
    """

    item_id: Id
    title: Text | UnsetType | None = UNSET
    description: Text | UnsetType | None = UNSET
    category: Text | UnsetType | None = UNSET
    brand: Text | UnsetType | None = UNSET
    price: Annotated[float, Meta(ge=0, le=MAX_NUMBER)] | UnsetType | None = UNSET
    available_from: float | str | UnsetType | None = UNSET
    image_url: Text | UnsetType | None = UNSET
    available: bool | UnsetType = UNSET
    attributes: Annotated[dict[_NAME, _VALUE], Meta(max_length=ATTRIBUTES)] | UnsetType = UNSET
    group_id: Id | UnsetType | None = UNSET


class ItemsAnswer(Struct):
    """accepted: number of items written. rejected: invalid items; the others in the request are unaffected."""

    accepted: int
    rejected: list[Rejected]


class ItemAnswer(Struct):
    """Current state of an item.

    in_release: whether it is in the live release. live: whether this worker can rank it. available: whether it may
    appear in results. vector: whether its text has been encoded. changed_at: Unix seconds of the last write, null if
    it has not been written since the release.
    """

    item_id: str
    in_release: bool
    live: bool
    available: bool
    vector: bool
    changed_at: float | None = None
    title: str | None = None
    price: float | None = None


_ITEM = msgspec.json.Decoder(ItemIn)


def accept_item(raw: msgspec.Raw, now: float) -> tuple[str, dict[str, bytes]]:
    """The item's id, and the fields to write as JSON by name. Raises Refusal naming the field and the reason."""
    try:
        given = _ITEM.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        raise to_refusal(e) from e
    item_id = part_id("item_id", given.item_id)
    fields: dict[str, Any] = {"at": now}
    for name in (*TEXT_COLUMNS, "price", "image_url", "available"):
        if (value := getattr(given, name)) is not UNSET:
            fields[name] = value
    if given.group_id is not UNSET:
        fields["group_id"] = None if given.group_id is None else part_id("group_id", given.group_id)
    if given.available_from is not UNSET:
        fields["available_from"] = given.available_from if given.available_from is None else _available_from(given)
    if given.attributes is not UNSET:
        try:
            check_attribute_names(given.attributes)
        except ValueError as e:
            raise Refusal("attributes", str(e)) from None
        fields |= {f"a:{name}": value for name, value in given.attributes.items()}
    return item_id, {name: msgspec.json.encode(value) for name, value in fields.items()}


def _available_from(given: ItemIn) -> float:
    assert isinstance(given.available_from, float | str)
    seconds = microseconds(given.available_from, "available_from") / 1e6
    if not is_within(seconds, ITEM_MOMENTS):
        raise Refusal(
            "available_from",
            f"{given.available_from} is not between 1700-01-01 and 2200-01-01; use `available` to withdraw an item",
        )
    return seconds
