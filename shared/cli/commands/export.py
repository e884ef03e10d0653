"""The command that writes a dataset, a run or a model into a zip."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.cli.base import RESULTS, connected, json_option, output_of

if TYPE_CHECKING:
    from shared.records.exports import ExportKind


@click.command()
@click.argument("kind", metavar="dataset|run|model", type=click.Choice(["dataset", "run", "model"]))
@click.argument("which", metavar="ID")
@click.argument("file", metavar="FILE.zip", type=RESULTS)
@json_option
@click.pass_context
def export(ctx: click.Context, kind: ExportKind, which: str, file: Path) -> None:
    """Write what a dataset, a run or a model consists of into a zip.

    Of a dataset its tables, of a run its record, curves, evaluation and predictions, of a model every variant and its
    card.
    """
    from shared.records.exports import write_export  # noqa: PLC0415

    output = output_of(ctx)
    partial = file.with_name(f".{file.name}.partial")
    try:
        with connected() as client, partial.open("wb") as target:
            which = client.resolve_dataset(which) if kind == "dataset" else which
            write_export(client.store, kind, which, target)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    if output.as_json:
        output.document({"kind": kind, "id": which, "file": str(file)})
    else:
        output.line(f"written to {file}")
