"""Names, notes and tags of datasets, runs, models and jobs, and deleting them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

from flask import Blueprint, flash, redirect, render_template, request, url_for
from werkzeug.wrappers import Response

from dashboard.api.managing import split_tags
from dashboard.auth import current_user
from dashboard.context import dashboard
from shared.errors import Conflict, NotFound, short_repr
from shared.records.annotations import KINDS, NAME_LENGTH, NOTE_LENGTH, Annotation, Kind, known_tags
from shared.records.record import Listing, StoredModel

_SHORT: Final = 12
_R = TypeVar("_R", bound=StoredModel)

blueprint = Blueprint("manage", __name__)


def tag_filter(kind: Kind) -> dict[str, Any]:
    """Returns what a list shows of tags: all that are in use, the one that is chosen, and what is damaged."""
    annotations, damaged = dashboard().client.annotations.find_all(kind)
    return {
        "annotations": annotations,
        "tags": known_tags(annotations),
        "tag": request.args.get("tag", ""),
        "damaged_annotations": damaged,
    }


def read_list_page(
    read: Callable[[int, int, str | None], Listing[_R]], size: int, tag: str | None
) -> tuple[Listing[_R], int, int]:
    """Returns the part of a list that the address asks for, its number from 1 on, and how many there are.

    A number past the end, as after a deletion, is the last one.

    Args:
        read: given a limit, an offset and a tag, returns the records there and the total.
        size: the most records of a page.
        tag: only those that have it; None for all.
    """
    page = max(1, request.args.get("page", 1, int))
    found = read(size, (page - 1) * size, tag)
    pages = max(1, -(-found.total // size))
    if page > pages:
        page = pages
        found = read(size, (page - 1) * size, tag)
    return found, page, pages


def annotation_view(kind: Kind, which: str, given_name: str) -> dict[str, Any]:
    """Returns what a page shows of the name, note and tags of its own thing."""
    return {
        "kind": kind,
        "which": which,
        "annotation": dashboard().store_cache.annotation(kind, which) or Annotation(),
        "given_name": given_name,
        "name_length": NAME_LENGTH,
        "note_length": NOTE_LENGTH,
        "known_tags": known_tags(dashboard().store_cache.annotations(kind)),
    }


@blueprint.post("/manage/<kind>/<which>")
def annotate(kind: str, which: str) -> Response:
    """Changes what differs from the name, note and tags that the form was made with: the rest may be others' work."""
    known = _known_kind(kind)
    tags, seen_tags = (set(split_tags(request.form.get(field, ""))) for field in ("tags", "seen_tags"))
    dashboard().client.annotate(
        known,
        which,
        name=request.form.get("name", ""),
        note=request.form.get("note", ""),
        seen_name=request.form.get("seen_name", ""),
        seen_note=request.form.get("seen_note", ""),
        add_tags=tags - seen_tags,
        remove_tags=seen_tags - tags,
        user=current_user(),
    )
    flash("Saved.")
    return redirect(_page_of(known, which), 303)


@blueprint.get("/manage/<kind>/<which>/delete")
def confirm_deletion(kind: str, which: str) -> str:
    """Says what depends on something, and asks whether to delete it."""
    known = _known_kind(kind)
    refusal, dependents = "", []
    try:
        dependents = dashboard().client.dependents(known, which)
    except Conflict as error:
        refusal = str(error)
    return render_template(
        "delete.html",
        kind=known,
        which=which,
        short=which[:_SHORT] if known == "dataset" else which,
        back=_page_of(known, which),
        refusal=refusal,
        dependents=[(found, _page_of(found.kind, found.which)) for found in dependents],
    )


@blueprint.post("/manage/<kind>/<which>/delete")
def delete(kind: str, which: str) -> Response:
    """Deletes something."""
    known = _known_kind(kind)
    dashboard().client.delete(known, which, user=current_user())
    dashboard().store_cache.forget(known, which)
    flash(f"{known.capitalize()} {which[:_SHORT] if known == 'dataset' else which} was deleted.")
    return redirect(url_for(f"{known}s.list_{known}s"), 303)


def _known_kind(kind: str) -> Kind:
    found = next((known for known in KINDS if known == kind), None)
    if found is None:
        raise NotFound(f"found the kind {short_repr(kind)}, expected one of {', '.join(KINDS)}")
    return found


def _page_of(kind: Kind, which: str) -> str:
    names = {"dataset": "sha256", "run": "run_id", "model": "version", "job": "job_id"}
    value: Any = int(which) if kind == "model" and which.isdecimal() else which
    return url_for(f"{kind}s.show_{kind}", **{names[kind]: value})
