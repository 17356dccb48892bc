"""Declarations of configuration fields in words: used by error messages and by the reference page."""

from __future__ import annotations

from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

_SIGNS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}


def options(annotation: Any) -> list[Any]:
    """A type and all types that it is made of."""
    return [annotation, *(o for inner in get_args(annotation) for o in options(inner))]


def section(field: FieldInfo | None) -> type[BaseModel] | None:
    """The model of a field that is a section or a list of sections; None for a plain value."""
    if field is None:
        return None
    return next((o for o in options(field.annotation) if isinstance(o, type) and issubclass(o, BaseModel)), None)


def is_mapping(field: FieldInfo | None) -> bool:
    """True if a field is a mapping of names to sections."""
    return field is not None and section(field) is not None and _has_mapping(options(field.annotation))


def _has_mapping(annotations: list[Any]) -> bool:
    return any(get_origin(annotation) is dict for annotation in annotations)


def names(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a model by the key that is written in the file."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def number_type(field: FieldInfo) -> str | None:
    """The type of a numeric field, in words; None for other fields."""
    found = options(field.annotation)
    if bool in found or str in found or _has_mapping(found):
        return None
    return "a whole number" if int in found else "a number" if float in found else None


def number_range(field: FieldInfo) -> str:
    """The numbers that a numeric field accepts, such as `a whole number >= 1 and <= 64, or null`."""
    bounds = {s: getattr(m, b) for m in field.metadata for b, s in _SIGNS.items() if getattr(m, b, None) is not None}
    allowed = " and ".join(f"{s} {v:g}" if isinstance(v, float) else f"{s} {v}" for s, v in bounds.items())
    is_finite = any(getattr(m, "allow_inf_nan", True) is False for m in field.metadata)
    number = "a finite number" if is_finite else number_type(field)
    null = ", or null" if type(None) in options(field.annotation) else ""
    return f"{number}{' ' if allowed else ''}{allowed}{null}"
