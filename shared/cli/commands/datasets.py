"""Commands for a dataset in the store: the edits of its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shared.cli.base import connected, json_option, output_of

if TYPE_CHECKING:
    from shared.records.edits import Edit, EditHistory


@click.group()
def dataset() -> None:
    """Correct the labels of a dataset that is in the store."""


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
        history = client.edits.history(sha256)
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
        history = client.edits.add(sha256, change, faces)
    _tell_edit(ctx, history, history.edits[-1])


@edits.command("undo")
@click.argument("sha256")
@click.argument("number", type=click.IntRange(min=1), required=False)
@json_option
@click.pass_context
def edits_undo(ctx: click.Context, sha256: str, number: int | None) -> None:
    """Undo an edit: the one of that NUMBER, or the newest that is in force."""
    with connected() as client:
        history, edit = client.edits.undo(sha256, number)
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
