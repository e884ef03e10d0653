"""The training parameters as fields of a form, made from their own types, bounds and meanings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shared.client import CURRENT_EDITS
from shared.params import TrainingParams
from shared.records.runs import Run
from shared.runtime.field_docs import values_of

PREFIX: Final = "param-"
"""What the names of the fields begin with, so that no parameter is taken for another field of the form."""


@dataclass(frozen=True, slots=True)
class ParameterField:
    """A training parameter as a form shows it.

    Attributes:
        name: of the parameter.
        description: its meaning.
        values: what it takes, in words; empty where choices say it.
        default: as text.
        value: as text; for a number empty where it is the default.
        choices: all values, or none for a number.
        whole: whether a number has to be whole.
        low: the least number.
        high: the largest number.
    """

    name: str
    description: str
    values: str
    default: str
    value: str
    choices: tuple[str, ...]
    whole: bool = False
    low: float | None = None
    high: float | None = None


def parameter_fields(params: TrainingParams | None = None) -> list[ParameterField]:
    """Returns a field for each training parameter.

    Args:
        params: what the form begins with; the defaults by default.
    """
    given = (params or TrainingParams()).as_dict()
    properties = TrainingParams.model_json_schema()["properties"]
    return [_field(name, properties[name], given[name]) for name in TrainingParams.model_fields]


def label_choices(current: str | None, like: Run | None) -> list[tuple[str, str]]:
    """Returns the labels that can be trained with, as (value, words): first those that the form begins with.

    Args:
        current: the hash of the edits in force; None where there are none.
        like: the run that the form begins with.
    """
    corrected = [] if current is None else [(CURRENT_EDITS, f"as corrected now ({current[:12]})")]
    archive = [("", "of the archive")]
    if like is None:
        found = [*corrected, *archive]
    elif like.edits is None:
        found = [*archive, *corrected]
    else:
        found = [(like.edits, f"as that run had them ({like.edits[:12]})"), *corrected, *archive]
    return found if len(found) > 1 else []


def read_parameters(form: Mapping[str, str]) -> TrainingParams:
    """Returns the parameters of a form: those that differ from their defaults are taken from it.

    Raises:
        InvalidMessage: code `invalid_params`, naming each fault.
    """
    changed: dict[str, Any] = {}
    for field in parameter_fields():
        text = form.get(PREFIX + field.name, "").strip()
        if text not in {"", field.default}:
            changed[field.name] = _value(text)
    return TrainingParams.parse(changed)


def _field(name: str, schema: Mapping[str, Any], value: object) -> ParameterField:
    info = TrainingParams.model_fields[name]
    choices: list[str] = []
    number: Mapping[str, Any] | None = None
    for kind in schema.get("anyOf", [schema]):
        if kind.get("type") in {"integer", "number"}:
            number = kind
        elif kind.get("type") == "boolean":
            choices += ["true", "false"]
        elif "enum" in kind or "const" in kind:
            choices += kind.get("enum", [kind.get("const")])
    default = _text(info.default)
    if number is None:
        return ParameterField(name, info.description or "", "", default, _text(value), tuple(choices))
    return ParameterField(
        name,
        info.description or "",
        values_of(info),
        default,
        "" if value == info.default else _text(value),
        (),
        whole=number["type"] == "integer",
        low=number.get("minimum", number.get("exclusiveMinimum")),
        high=number.get("maximum", number.get("exclusiveMaximum")),
    )


def _text(value: object) -> str:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _value(text: str) -> object:
    if text in {"true", "false"}:
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
