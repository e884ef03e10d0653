"""The command that deletes from the store."""

from __future__ import annotations

import click

from shared.cli.base import connected, json_option, output_of


@click.command()
@click.argument("kind", metavar="dataset|run|job", type=click.Choice(["dataset", "run", "job"]))
@click.argument("which", metavar="ID")
@json_option
@click.pass_context
def delete(ctx: click.Context, kind: str, which: str) -> None:
    """Delete a dataset, a run or a job from the store, for good.

    What is in use is refused: a run or job that has not ended, and the run or dataset of a model that is champion,
    previous or challenger.
    """
    from shared.records.deletion import Deletion  # noqa: PLC0415

    output = output_of(ctx)
    with connected() as client:
        deletion = Deletion(client.store)
        {"dataset": deletion.dataset, "run": deletion.run, "job": deletion.job}[kind](which)
    if output.as_json:
        output.document({"deleted": which})
    else:
        output.line(f"deleted {kind} {which}")
