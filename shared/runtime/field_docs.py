"""What values a setting or parameter takes, in words: for tables, and for errors that say what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from types import NoneType, UnionType
from typing import Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo


def values_of(field: FieldInfo) -> str:
    """Returns what values there are, such as `1 to 1000` or `auto, cuda, cpu`; empty where the meaning says it all."""
    members = _members(field)
    if len(members) == 1:
        return _of_type(members[0].annotation, field.metadata)
    described = (_of_type(member.annotation, member.metadata) or member.description for member in members)
    return " or ".join(filter(None, described))


def expected_of(field: FieldInfo) -> str:
    """Returns the same as an error says it, such as `a whole number, 1 to 1000 or auto`."""
    kinds = [member.annotation for member in _members(field)]
    values = values_of(field)
    if int in kinds or float in kinds:
        number = "a whole number" if int in kinds else "a number"
        return f"{number}, {values}" if values else number
    return values if " or " in values else " or ".join(values.rsplit(", ", 1))


def _members(field: FieldInfo) -> list[FieldInfo]:
    """Returns the alternatives of a union, save None; of anything else, itself."""
    if isinstance(field.annotation, UnionType) or get_origin(field.annotation) is Union:
        return [FieldInfo.from_annotation(member) for member in get_args(field.annotation) if member is not NoneType]
    return [field]


def _of_type(annotation: object, constraints: Sequence[object]) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if annotation is bool:
        return "true, false"
    bounds = {
        key: f"{getattr(constraint, key):,}"
        for constraint in constraints
        for key in ("ge", "gt", "le", "lt")
        if getattr(constraint, key, None) is not None
    }
    low = bounds.get("ge") or (f"above {bounds['gt']}" if "gt" in bounds else "")
    high = bounds.get("le") or (f"below {bounds['lt']}" if "lt" in bounds else "")
    return f"{low} to {high}" if high else low if low.startswith("above") else f"at least {low}" if low else ""
