"""Names, notes, tags and deletion, alike for datasets, runs, models and jobs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flask import Response, jsonify, request

from dashboard.api.fields import read_field, read_json_object, says_yes
from dashboard.auth import current_user
from dashboard.context import dashboard
from shared.errors import Conflict
from shared.records.annotations import Annotation, Kind
from shared.records.deletion import Dependent


def annotate(kind: Kind, which: str) -> Response:
    """Changes the name, note and tags of one item, and answers with them."""
    name, note = read_field("name"), read_field("note")
    annotation = dashboard().client.annotate(kind, which, name=name, note=note, tags=_read_tags(), user=current_user())
    return jsonify({"annotation": annotation.as_dict()})


def _read_tags() -> list[str] | None:
    """Returns the tags that the request gives, as a list in JSON or as a text with commas; None where it gives none."""
    listed = read_json_object().get("tags")
    if isinstance(listed, list):
        return [str(tag) for tag in listed]
    text = read_field("tags")
    return None if text is None else split_tags(text)


def split_tags(text: str) -> list[str]:
    """Returns the tags in a text that separates them by commas."""
    return [tag for part in text.split(",") if (tag := part.strip())]


def delete(kind: Kind, which: str) -> Response:
    """Deletes one item, or answers what depends on it."""
    client = dashboard().client
    dependents = client.dependents(kind, which)
    if dependents and not says_yes("confirm"):
        raise Conflict(f"{describe_dependents(dependents)} Expected confirm=true to delete {kind} {which}")
    client.delete(kind, which, user=current_user())
    dashboard().store_cache.forget(kind, which)
    told = [{"kind": found.kind, "id": found.which, "loss": found.loss} for found in dependents]
    return jsonify({"deleted": which, "dependents": told})


def describe_dependents(dependents: Sequence[Dependent]) -> str:
    """Returns a sentence for each dependent: it stays, but loses something."""
    return " ".join(f"{found.kind.capitalize()} {found.which} stays, but loses {found.loss}." for found in dependents)


def read_tag() -> str | None:
    """Returns the tag that a list is to be limited to."""
    return request.args.get("tag") or None


def describe_annotation(found: Annotation | None) -> dict[str, Any] | None:
    """Returns name, note and tags as answers show them."""
    return None if found is None else found.as_dict()
