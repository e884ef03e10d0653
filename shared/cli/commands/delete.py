"""The command that deletes from the store."""

from __future__ import annotations

import sys

import click

from shared.cli.base import connected, json_option, output_of


@click.command()
@click.argument("kind", metavar="dataset|run|model|job", type=click.Choice(["dataset", "run", "model", "job"]))
@click.argument("which", metavar="ID")
@click.option("--yes", is_flag=True, help="Delete it also where something depends on it, without asking.")
@json_option
@click.pass_context
def delete(ctx: click.Context, kind: str, which: str, yes: bool) -> None:
    """Delete a dataset, a run, a model or a job from the store, for good.

    What is in use is refused: a run or job that has not ended, and what it needs; a model that is champion, previous or
    challenger, its run, and the datasets that it has learned from; a model that another one has learned from. Where
    something else depends on it, the command says what, and asks.
    """
    from shared.errors import Conflict  # noqa: PLC0415
    from shared.records.annotations import KINDS  # noqa: PLC0415

    output = output_of(ctx)
    chosen = KINDS[[str(known) for known in KINDS].index(kind)]
    with connected() as client:
        which = client.resolve_dataset(which) if kind == "dataset" else which
        dependents = client.dependents(chosen, which)
        told = [f"{found.kind} {found.which} stays, but loses {found.loss}" for found in dependents]
        if dependents and not yes:
            question = f"{'; '.join(told)}. Delete {kind} {which}?"
            if output.as_json or not sys.stdin.isatty():
                raise Conflict(f"{'; '.join(told)}; expected --yes to delete {kind} {which}")
            click.confirm(question, abort=True, err=True)
        client.delete(chosen, which)
    if output.as_json:
        dependent = [{"kind": found.kind, "id": found.which, "loss": found.loss} for found in dependents]
        output.document({"deleted": which, "dependents": dependent})
    else:
        output.line(f"deleted {kind} {which}")
        for line in told:
            output.remark(line)
