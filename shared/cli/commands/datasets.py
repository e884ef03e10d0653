"""Commands for a dataset in the store: its faces, and the edits of its labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.cli.base import RESULTS, connected, json_option, output_of
from shared.errors import GenderlineError

if TYPE_CHECKING:
    from shared.datasets.face_filter import FaceFilter
    from shared.records.edits import Edit, EditHistory


@click.group()
def dataset() -> None:
    """Find faces of a dataset that is in the store, and correct their labels."""


def _filter(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> FaceFilter:
    """Reads `--where key=value`."""
    from shared.datasets.face_filter import FaceFilter  # noqa: PLC0415

    wanted = {}
    for text in given:
        key, equals, wanted[key] = text.partition("=")
        if not equals:
            raise click.BadParameter(f"found {text!r}, expected KEY=VALUE, such as result=wrong")
    try:
        return FaceFilter.parse(wanted)
    except GenderlineError as error:
        raise click.BadParameter(str(error)) from None


@dataset.command()
@click.argument("sha256")
@click.option(
    "--where",
    "wanted",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_filter,
    help="Only such faces, as in result=wrong, age=20-29, low=0.9; version and other choose models, labels=archive "
    "the labels. docs/api.md says all.",
)
@click.option("--sort", show_default="archive", help="The order, such as suspects or largest_error.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="The most to show.")
@click.option("--out", type=RESULTS, help="Write all of them to this CSV file, or with their images to this zip.")
@json_option
@click.pass_context
def faces(ctx: click.Context, sha256: str, wanted: FaceFilter, sort: str | None, limit: int, out: Path | None) -> None:
    """List faces with their predictions, as the dataset's page shows them.

    `--sort suspects` begins with the labels that are the likeliest to be wrong.
    """
    from shared.cli.output import percent  # noqa: PLC0415
    from shared.datasets.face_filter import SORTS  # noqa: PLC0415
    from shared.datasets.face_selection import COLUMNS, StoredFaces, select_strictly  # noqa: PLC0415

    if sort is not None:
        if sort not in SORTS:
            raise click.BadParameter(f"found {sort!r}, expected one of {', '.join(SORTS)}", param_hint="--sort")
        wanted = dataclasses.replace(wanted, sort=sort)
    if out is not None and out.suffix not in {".csv", ".zip"}:
        raise click.BadParameter(f"found {out.name!r}, expected a name that ends in .csv or .zip", param_hint="--out")
    output = output_of(ctx)
    with connected() as client:
        found = select_strictly(StoredFaces(client.store), client.resolve_dataset(sha256), wanted)
    with found.data.held:
        order = found.select()
        views = [found.view(int(i)) for i in order[:limit]]
        if out is not None and out.suffix == ".zip":
            with out.open("wb") as file:
                found.write_zip(file)
        elif out is not None:
            out.write_text(found.as_csv(), encoding="utf-8")
    if output.as_json:
        rows = [{name: view.get(name) for name in COLUMNS} for view in views]
        output.document({"total": len(order), "version": found.wanted.version, "faces": rows})
        return
    if out is None:
        output.table(
            ["FACE", "LABEL", "PREDICTED", "CONFIDENCE", "SPLIT", "EDITED", "NAME"],
            [
                (
                    view["index"],
                    view["gender"],
                    view["predicted"],
                    percent(view.get("confidence")),
                    view["split"],
                    view["edited"],
                    view["name"],
                )
                for view in views
            ],
            right=[0, 3],
        )
    shown = f"written to {out}" if out is not None else f"{len(views):,} shown"
    model = "" if found.wanted.version is None else f", model version {found.wanted.version}"
    output.remark(f"{len(order):,} of {len(found.data):,} faces, {shown}{model}")


@dataset.group()
def edits() -> None:
    """List, make or undo edits of a dataset's labels. The archive stays as it is.

    Train with them by `genderline train --dataset SHA256 --edits current`.
    """


@edits.command("list")
@click.argument("sha256")
@json_option
@click.pass_context
def edits_list(ctx: click.Context, sha256: str) -> None:
    """List the edits of a dataset, oldest first."""
    from shared.cli.output import moment  # noqa: PLC0415

    output = output_of(ctx)
    with connected() as client:
        history = client.edits.history(client.resolve_dataset(sha256))
    if output.as_json:
        output.document({**history.as_dict(), **_state_of(history)})
        return
    if not history.edits:
        output.remark("no edits yet; make one with `genderline dataset edits add`")
        return
    output.table(
        ["EDIT", "CHANGE", "FACES", "BY", "AT (UTC)", "UNDONE (UTC)"],
        [
            (
                str(edit.number),
                edit.change,
                _faces_of(edit),
                edit.user,
                moment(edit.at),
                edit.undone_at and moment(edit.undone_at),
            )
            for edit in history.edits
        ],
        right=[0],
    )
    _tell_state(ctx, history)


@edits.command("add")
@click.argument("sha256")
@click.argument("change", type=click.Choice(["male", "female", "exclude", "restore"]))
@click.argument("faces", metavar="FACE…", type=click.IntRange(min=0), nargs=-1, required=True)
@json_option
@click.pass_context
def edits_add(ctx: click.Context, sha256: str, change: str, faces: tuple[int, ...]) -> None:
    """Set the label of faces, exclude them from training, or restore their label in the archive.

    FACE is a face's index, as in faces.csv and on its page.
    """
    with connected() as client:
        history = client.edits.add(client.resolve_dataset(sha256), change, faces)
    _tell_edit(ctx, history, history.edits[-1])


@edits.command("undo")
@click.argument("sha256")
@click.argument("number", type=click.IntRange(min=1), required=False)
@json_option
@click.pass_context
def edits_undo(ctx: click.Context, sha256: str, number: int | None) -> None:
    """Undo an edit: the one of that NUMBER, or the newest that is in force."""
    with connected() as client:
        history, edit = client.edits.undo(client.resolve_dataset(sha256), number)
    _tell_edit(ctx, history, edit)


def _tell_edit(ctx: click.Context, history: EditHistory, edit: Edit) -> None:
    output = output_of(ctx)
    if output.as_json:
        output.document({"edit": edit.as_dict(), **_state_of(history)})
        return
    done = "undone" if edit.undone_at else "made"
    output.line(f"edit {edit.number} {done}: {edit.change} {_faces_of(edit)}")
    _tell_state(ctx, history)


def _tell_state(ctx: click.Context, history: EditHistory) -> None:
    corrections = history.corrections()
    output_of(ctx).line(
        f"{len(corrections.male)} faces set to male, {len(corrections.female)} to female, "
        f"{len(corrections.exclude)} excluded"
    )


def _state_of(history: EditHistory) -> dict[str, str | None]:
    corrections = history.corrections()
    return {"sha256": None if corrections.is_empty else corrections.sha256}


def _faces_of(edit: Edit) -> str:
    shown = ", ".join(map(str, edit.faces[:8]))
    return shown if len(edit.faces) <= 8 else f"{shown} and {len(edit.faces) - 8} more"
