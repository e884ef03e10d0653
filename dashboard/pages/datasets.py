"""Datasets: the list, what one holds, its faces with their predictions, a page for each face, and training on it."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

import cv2
import numpy as np
from flask import Blueprint, Response, jsonify, redirect, render_template, request, url_for
from numpy.typing import NDArray
from PIL import Image
from werkzeug.wrappers import Response as WsgiResponse

from dashboard.api.faces import list_predictions, requested_as_of, require_face, select_as_of
from dashboard.api.uploads import parse_integer
from dashboard.auth import current_user
from dashboard.context import dashboard
from dashboard.pages.manage import annotation_view, tag_filter
from dashboard.pages.originals import send_original
from dashboard.pages.train_fields import label_choices, parameter_fields, read_parameters
from shared.datasets.columns import EXCLUDED, Dataset
from shared.datasets.face_filter import (
    AGREEMENTS,
    CONFIDENCE_BANDS,
    SORTS,
    FaceFilter,
    age_band_indices,
    face_view,
)
from shared.datasets.face_selection import FaceSelection, read_selection
from shared.errors import InvalidMessage, NotFound
from shared.faces.labels import ETHNICITIES, GENDERS
from shared.faces.png import encode_png
from shared.faces.rejects import REJECT_REASONS
from shared.measures.labels import ALL_FACES
from shared.records.dataset import AGE_BANDS, SPLITS, DatasetSummary
from shared.records.predictions import predict_female
from shared.records.record import DamagedRecord
from shared.records.runs import Run, RunState

_PAGE: Final = 36
_EXAMPLES: Final = 5
_SHEET_FACES: Final = 64
_INDEX: Final = re.compile("[0-9]{1,9}")
_SHEET_COLUMNS: Final = 8
_THUMBNAIL: Final = 96
"""Side of a thumbnail, in pixels."""
_FOREVER: Final = "private, max-age=31536000, immutable"
_WORDS: Final = {
    ("confidence", "0-60"): "below 60 %",
    **{("confidence", band): f"{band} %".replace("-", "\N{EN DASH}") for band in CONFIDENCE_BANDS[1:]},
    **{("agreement", key): words for key, words in AGREEMENTS.items()},
    ("models", "agree"): "models agree",
    ("models", "disagree"): "models disagree",
    ("duplicates", "near-duplicates"): "with a near-duplicate",
    ("duplicates", "others"): "without",
    ("split", ALL_FACES): "all but excluded",
    ("edited", "unedited"): "not edited",
    ("edited", "corrected"): "label corrected",
    ("edited", "confirmed"): "label confirmed",
}
"""Values of facets as a page writes them, where it does not write them as they are."""
_LOOKED_AT: Final = 20
"""Newest runs among which the last finished one is looked for."""
_UNBALANCED: Final = 0.3
_MANY: Final = 0.2
_FEW_FACES: Final = 500
_REVERSED: Final = 0.35

blueprint = Blueprint("datasets", __name__)


@blueprint.get("/datasets")
def list_datasets() -> str:
    """Shows all datasets."""
    cache = dashboard().store_cache
    runs_of: dict[str, list[Run]] = defaultdict(list)
    for run in cache.runs().records:
        if run.dataset:
            runs_of[run.dataset].append(run)
    tagged = tag_filter("dataset")
    items: list[dict[str, Any]] = []
    for sha256, name in cache.named_datasets(tagged["tag"] or None):
        found = runs_of[sha256]
        summary = cache.readable_summary(sha256)
        items.append({"sha256": sha256, "name": name, "summary": summary, "runs": found, "unread": _unread(found)})
    return render_template("datasets.html", datasets=items, fields=parameter_fields(), **tagged)


@blueprint.get("/datasets/<sha256>")
def show_dataset(sha256: str) -> str:
    """Shows what a dataset holds, and its faces."""
    cache = dashboard().store_cache
    found_runs = [run for run in cache.runs().records if run.dataset == sha256]
    summary = cache.summary(sha256)
    about = annotation_view("dataset", sha256, found_runs[0].name if found_runs else "Dataset")
    if summary is None:
        if sha256 not in cache.dataset_ids():
            raise NotFound(f"dataset {sha256[:12]} does not exist")
        return render_template(
            "dataset_waiting.html",
            sha256=sha256,
            about=about,
            runs=found_runs,
            unread=_unread(found_runs),
            refusal=cache.refusal(sha256),
            rejects=_rejects(sha256),
        )
    asked = _shown_faces(sha256)
    data, wanted, probabilities, found = asked.data, asked.wanted, asked.probabilities, asked.select()
    pages = max(1, -(-len(found) // _PAGE))
    page = min(max(1, request.args.get("page", 1, int)), pages)
    shown = found[(page - 1) * _PAGE : page * _PAGE]
    query = wanted.as_query()
    predicting = cache.predicting_versions(sha256)
    corrections, counts = cache.corrections(sha256), _count_labels(data)
    like = next((run for run in found_runs if run.run_id == request.args.get("like")), None)
    face = request.args.get("face", None, int)
    return render_template(
        "dataset.html",
        data=data,
        about=about,
        name=about["annotation"].name or about["given_name"],
        summary=summary,
        warnings=_warnings(data, summary, counts, probabilities, wanted.version),
        counts=counts,
        runs=found_runs,
        rejects=_rejects(sha256),
        versions=[card.version for card in cache.cards().records],
        version=wanted.version,
        # The chosen model stays in the list even without predictions, so that the form shows the filter in force.
        others=predicting if wanted.other in [None, *predicting] else [*predicting, wanted.other],
        predicted=probabilities is not None,
        scoring=dashboard().scoring.state,
        wanted=wanted,
        query=query,
        corrected_now=_without_labels(query),
        csv_url=url_for("api.dataset_faces", sha256=sha256, **query),
        zip_url=url_for("api.dataset_face_images", sha256=sha256, **query),
        facets=_facets(asked),
        corrections=corrections,
        edits=corrections.sha256 if not corrections.is_empty else None,
        start=_position(found, face) or 0,
        selected=_selection(found, face, request.args.get("selected", "")),
        faces=[asked.view(int(i)) for i in shown],
        found=len(found),
        changes=cache.edit_history(sha256).changes,
        page=page,
        pages=pages,
        link=lambda number: url_for("datasets.show_dataset", sha256=sha256, page=number, **query) + "#faces",
        splits=SPLITS,
        sorts=SORTS,
        fields=parameter_fields(like.params if like else None),
        open_form=like is not None,
        labels=label_choices(None if corrections.is_empty else corrections.sha256, like),
        looked=bool(found_runs) and all(run.state is RunState.INGESTED for run in found_runs),
        estimate=_estimate(summary),
        ahead=dashboard().runs_ahead(),
    )


@blueprint.post("/datasets/<sha256>/train")
def train(sha256: str) -> WsgiResponse:
    """Starts a training run on a dataset that is here already."""
    edits, against = request.form.get("edits") or None, request.form.get("against", None, int)
    params = read_parameters(request.form)
    if against is not None and (run := _run_of(against)) is not None:
        params = run.params or params  # so that the labels are all that differs
    name = request.form.get("name", "").strip() or None
    run_id = dashboard().client.train_dataset(sha256, name=name, params=params.as_dict(), edits=edits)
    return redirect(url_for("runs.show_run", run_id=run_id, against=against), 303)


@blueprint.post("/datasets/<sha256>/edits")
def edit(sha256: str) -> WsgiResponse:
    """Makes an edit of one face's label, or undoes the newest, and shows the face again: for pages without scripts."""
    edits, index = dashboard().client.edits, request.form.get("face", 0, int)
    if request.form.get("change") == "undo":
        edits.undo(sha256, request.form.get("number", None, int), user=current_user())
    else:
        edits.add(sha256, request.form.get("change"), [index], user=current_user())
    query = {**FaceFilter.from_query(request.args).as_query(), "as_of": requested_as_of()}
    return redirect(url_for("datasets.show_face", sha256=sha256, index=index, **query), 303)


@blueprint.post("/datasets/<sha256>/predict")
def score_dataset(sha256: str) -> WsgiResponse:
    """Starts predicting all faces by a model that was trained on others."""
    version = parse_integer(request.form.get("version"), "version", 1, 10**9)
    if version is None:
        raise InvalidMessage("version is missing; expected a model's number")
    dashboard().scoring.score(sha256, version)
    return redirect(url_for("datasets.show_dataset", sha256=sha256, version=version) + "#faces", 303)


def _shown_faces(sha256: str) -> FaceSelection:
    """Returns the dataset as the page's address wants to see it; what makes no sense there is passed over."""
    found = read_selection(dashboard().store_cache, sha256, FaceFilter.from_query(request.args))
    return dataclasses.replace(found, wanted=found.wanted.without(found.unanswered))


@blueprint.get("/datasets/<sha256>/counts.json")
def label_counts(sha256: str) -> Response:
    """Returns how many faces there are by label, for the plots."""
    return jsonify(_count_labels(dashboard().store_cache.edited(sha256, request.args.get("labels", ""))))


@blueprint.get("/datasets/<sha256>/faces/<int:index>")
def show_face(sha256: str, index: int) -> str:
    """Shows one face: its label beside each model's prediction, and the way to its neighbours in the filtered view."""
    asked = _shown_faces(sha256)
    data, wanted, as_of = asked.data, asked.wanted, requested_as_of()
    require_face(data, index)
    found = select_as_of(asked, as_of)
    if index not in found:  # then its neighbours are those of the whole dataset
        wanted = FaceFilter(version=wanted.version, labels=wanted.labels, threshold=wanted.threshold)
        found = np.arange(len(data))
    position = int(np.flatnonzero(found == index)[0])
    cache = dashboard().store_cache
    history = cache.edit_history(sha256)
    filters = wanted.as_query()
    query = {**filters, "as_of": history.changes if as_of is None else as_of}

    def neighbour(step: int) -> str | None:
        if not 0 <= position + step < len(found):
            return None
        return url_for("datasets.show_face", sha256=sha256, index=int(found[position + step]), **query)

    return render_template(
        "face.html",
        data=data,
        face=face_view(data, None, index),
        views=list_predictions(data, index, wanted.threshold),
        archive_gender=GENDERS[cache.dataset(sha256).gender[index]],
        edits=history.of_face(index),
        query=query,
        labels=wanted.labels,
        corrected_now=_without_labels(filters),
        position=position,
        matches=len(found),
        filtered=not wanted.is_open,
        previous=neighbour(-1),
        next=neighbour(1),
        back=url_for("datasets.show_dataset", sha256=sha256, page=position // _PAGE + 1, **filters) + "#faces",
    )


@blueprint.get("/datasets/<sha256>/faces/<int:index>.png")
def face_image(sha256: str, index: int) -> Response:
    """Sends a face as the network sees it, 128 x 128 pixels or the `size` asked for."""
    face = _with_face(sha256, index).faces[index]
    size = request.args.get("size", 128, int)
    if 16 <= size < 128:
        face = cv2.resize(face, (size, size), interpolation=cv2.INTER_AREA).astype("uint8")
    answer = Response(encode_png(face), mimetype="image/png")
    # The address holds the archive's hash, so what it names never changes.
    answer.headers["Cache-Control"] = _FOREVER
    return answer


@blueprint.get("/datasets/<sha256>/faces/<int:index>.webp")
def face_thumbnail(sha256: str, index: int) -> Response:
    """Sends a face as a small WebP."""
    answer = Response(_encode_webp(_thumbnail(_with_face(sha256, index), index)), mimetype="image/webp")
    answer.headers["Cache-Control"] = _FOREVER
    return answer


@blueprint.get("/datasets/<sha256>/faces/sheet.webp")
def face_sheet(sha256: str) -> Response:
    """Sends some faces as one WebP, eight in a row, in the order in which `faces` names them: one request for many."""
    data = dashboard().store_cache.dataset(sha256)
    named = request.args.get("faces", "").split(",")
    if len(named) > _SHEET_FACES or not all(_INDEX.fullmatch(text) for text in named):
        raise InvalidMessage(f"expected 1 to {_SHEET_FACES} indices of faces, separated by commas, in faces")
    indices = [int(text) for text in named]
    require_face(data, max(indices))
    rows = -(-len(indices) // _SHEET_COLUMNS)
    sheet = np.zeros((rows * _THUMBNAIL, min(len(indices), _SHEET_COLUMNS) * _THUMBNAIL), np.uint8)
    for place, index in enumerate(indices):
        y, x = (_THUMBNAIL * number for number in divmod(place, _SHEET_COLUMNS))
        sheet[y : y + _THUMBNAIL, x : x + _THUMBNAIL] = _thumbnail(data, index)
    answer = Response(_encode_webp(sheet), mimetype="image/webp")
    answer.headers["Cache-Control"] = _FOREVER
    return answer


@blueprint.get("/datasets/<sha256>/faces/<int:index>/original")
def face_original(sha256: str, index: int) -> Response:
    """Sends a face's image as it stands in the archive."""
    data = _with_face(sha256, index)
    answer = send_original(f"datasets/{sha256}/archive.zip", data.names[index])
    answer.headers["Cache-Control"] = _FOREVER
    return answer


def _run_of(version: int) -> Run | None:
    """Returns the run that a model came of; None where one of them is gone."""
    cache = dashboard().store_cache
    with contextlib.suppress(NotFound, DamagedRecord):
        return cache.find_run(cache.card(version).run_id)
    return None


def _estimate(summary: DatasetSummary) -> dict[str, Any] | None:
    """Returns how long training will take, as the newest finished run did for each face and epoch; None without one."""
    parts = dashboard()
    for run in parts.store_cache.runs(_LOOKED_AT).records:
        timings = run.timings
        if run.model is None or timings.training_at is None or timings.registered_at is None:
            continue
        with contextlib.suppress(NotFound, DamagedRecord):  # deleted, or nothing to measure by
            epochs = len(parts.client.runs.history(run.run_id))
            faces = parts.store_cache.card(run.model.version).dataset.counts["train"]
            took = timings.registered_at - timings.training_at
            wanted = sum(summary.splits["train"].values())
            return {"seconds": took * wanted / max(1, faces), "faces": faces, "epochs": epochs, "took": took}
    return None


def _unread(found: list[Run]) -> Run | None:
    """Returns the newest of some runs if all have ended: why their archive was not read; None where one may read it."""
    return found[0] if found and all(run.state.is_final for run in found) else None


def _with_face(sha256: str, index: int) -> Dataset:
    data = dashboard().store_cache.dataset(sha256)
    require_face(data, index)
    return data


def _thumbnail(data: Dataset, index: int) -> NDArray[np.uint8]:
    side = (_THUMBNAIL, _THUMBNAIL)
    return np.asarray(cv2.resize(data.faces[index], side, interpolation=cv2.INTER_AREA), np.uint8)


def _encode_webp(image: NDArray[np.uint8]) -> bytes:
    """Returns uint8 (H, W) as a WebP file: for the eye, in about a seventh of the PNG's bytes."""
    target = io.BytesIO()
    # Half the time of the default method, for 6 % more bytes.
    Image.fromarray(image).save(target, "WEBP", quality=70, method=2)
    return target.getvalue()


def _facets(asked: FaceSelection) -> list[dict[str, Any]]:
    """Returns the facets of a page: each with its values that some faces have, and where each value leads."""
    query = asked.wanted.as_query()
    found = []
    for facet in asked.count_facets():
        rest = {name: value for name, value in query.items() if name != facet.field}
        options = [
            {
                "value": value,
                "words": _WORDS.get((facet.field, value), value),
                "count": count,
                "chosen": value == facet.chosen,
                # The chosen value leads back to all.
                "query": rest if value == facet.chosen else {**rest, facet.field: value},
            }
            for value, count in facet.counts.items()
            if count or value == facet.chosen
        ]
        if len(options) > 1 or facet.chosen:
            found.append({"field": facet.field, "title": facet.title, "options": options})
    return found


def _without_labels(query: dict[str, Any]) -> dict[str, Any]:
    """Returns the query of the same faces with the labels as corrected now."""
    return {name: value for name, value in query.items() if name != "labels"}


def _position(found: NDArray[np.intp], index: int | None) -> int | None:
    """Returns where a face stands among those that were found; None where it does not."""
    places = np.flatnonzero(found == index)
    return int(places[0]) if len(places) else None


def _selection(found: NDArray[np.intp], face: int | None, selected: str) -> list[int]:
    """Returns the faces of the address's selection that are still found; none where the one under the cursor is not.

    A key would act on faces that nobody sees.
    """
    if _position(found, face) is None:
        return []
    present = set(found.tolist())
    return [index for part in selected.split(".") if part.isdecimal() and (index := int(part[:9])) in present]


def _count_labels(data: Dataset) -> dict[str, Any]:
    """Returns how many faces there are by gender, age, ethnicity and split, without those that an edit left out."""
    kept = data.split != EXCLUDED

    def count(chosen: NDArray[np.bool_]) -> dict[str, int]:
        return dict(zip(GENDERS, np.bincount(data.gender[chosen], minlength=len(GENDERS)).tolist(), strict=True))

    def by_gender(values: Sequence[str], codes: NDArray[Any]) -> dict[str, dict[str, int]]:
        return {value: count(kept & (codes == code)) for code, value in enumerate(values)}

    return {
        "faces": int(kept.sum()),
        "excluded": int((~kept).sum()),
        "genders": count(kept),
        "ages": by_gender(AGE_BANDS, age_band_indices(data)),
        "ethnicities": by_gender(ETHNICITIES, data.ethnicity),
        "splits": by_gender(SPLITS, data.split),
    }


def _warnings(
    data: Dataset,
    summary: DatasetSummary,
    counts: Mapping[str, Any],
    probabilities: NDArray[np.float32] | None,
    version: int | None,
) -> list[str]:
    """Returns what to look at before training on a dataset."""
    found = []
    genders, faces = counts["genders"], counts["faces"]
    smaller = min(genders, key=lambda gender: genders[gender])
    share = genders[smaller] / max(1, faces)
    if share < _UNBALANCED:
        found.append(f"Unbalanced labels: only {100 * share:.0f} % of the faces are {smaller}.")
    if faces < _FEW_FACES:
        found.append(f"Few faces: with {faces:,} the measured accuracy has a wide interval.")
    if summary.near_duplicate_faces > _MANY * summary.faces:
        found.append(
            f"Many near-duplicates: {summary.near_duplicate_faces:,} of {summary.faces:,} faces look alike. "
            "They are kept in one split each, so there are fewer people than faces."
        )
    if summary.images_seen - summary.faces > _MANY * summary.images_seen:
        rejected = summary.images_seen - summary.faces
        found.append(f"Many rejected files: {rejected:,} of {summary.images_seen:,}. See the reasons below.")
    if probabilities is not None and faces:
        kept = data.split != EXCLUDED
        accuracy = float((predict_female(probabilities) == (data.gender == 1))[kept].mean())
        if accuracy < _REVERSED:
            found.append(
                f"The labels look reversed: model {version} agrees with only {100 * accuracy:.0f} % of them. "
                "Expected gender 0 for male and 1 for female in the file names."
            )
    return found


def _rejects(sha256: str) -> list[dict[str, Any]]:
    """Returns the rejects by reason, most frequent first, with some examples each."""
    groups: dict[str, list[Any]] = defaultdict(list)
    with contextlib.suppress(NotFound):
        for row in dashboard().store_cache.rejects(sha256):
            groups[row.reason].append(row)
    return [
        {"reason": reason, "meaning": REJECT_REASONS.get(reason, ""), "count": len(rows), "examples": rows[:_EXAMPLES]}
        for reason, rows in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
