"""Commands that train, and follow what is being trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shared.cli.annotate import Changes, annotate, annotation_options
from shared.cli.base import FILE, connected, json_option, output_of, resume_hint
from shared.errors import GenderlineError

if TYPE_CHECKING:
    from shared.cli.output import Output
    from shared.client import Client
    from shared.records.runs import Run


def _parameters(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Reads `--param key=value` and checks them all before anything is sent."""
    from shared.params import TrainingParams  # noqa: PLC0415

    params: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"found {text!r}, expected KEY=VALUE")
        try:
            params[key] = json.loads(value)
        except ValueError:
            params[key] = value
    try:
        TrainingParams.parse(params)
    except GenderlineError as error:
        raise click.BadParameter(str(error)) from None
    return params


def _labels(_ctx: click.Context, _option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Reads `--labels key=value` and checks them before anything is sent."""
    from shared.faces.labelling import LabelSpec  # noqa: PLC0415

    labels: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"found {text!r}, expected KEY=VALUE, such as male=hombres")
        labels[key] = value
    try:
        LabelSpec.parse(labels)
    except GenderlineError as error:
        raise click.BadParameter(str(error)) from None
    return labels


@click.command()
@click.argument("archive", metavar="ARCHIVE", type=FILE, required=False)
@click.option(
    "--dataset", metavar="SHA256", help="Train again on a dataset that is in the store, instead of an ARCHIVE."
)
@click.option("--name", help="The name of the run; by default the file's.")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", callback=_parameters, help="Training parameter.")
@click.option(
    "--labels",
    multiple=True,
    metavar="KEY=VALUE",
    callback=_labels,
    help="Where the labels stand, if guessing fails: source, table, file, gender, age, ethnicity, male, female.",
)
@click.option(
    "--edits",
    metavar="current|SHA256",
    help="With --dataset: train on labels as corrected by `genderline dataset edits`.",
)
@click.option("--look", is_flag=True, help="Only read the archive, so that its faces can be looked at; train later.")
@click.option("--detach", is_flag=True, help="Submit it and do not wait.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    help="Stop following after so many seconds; the run continues.",
)
@json_option
@click.pass_context
def train(
    ctx: click.Context,
    archive: Path | None,
    dataset: str | None,
    name: str | None,
    params: dict[str, Any],
    labels: dict[str, Any],
    edits: str | None,
    look: bool,
    detach: bool,
    timeout_s: float | None,
) -> None:
    """Train a model on an archive (zip, tar or tar.gz) of labelled faces and follow it."""
    from shared.cli.follow import check_may_follow  # noqa: PLC0415

    if (archive is None) == (dataset is None):
        raise click.UsageError("expected either an ARCHIVE or --dataset SHA256")
    if edits and not dataset:
        raise click.UsageError("--edits belongs to --dataset: a new ARCHIVE has none")
    if dataset and look:
        raise click.UsageError("--look belongs to an ARCHIVE; a dataset is in the store already")
    if dataset and labels:
        raise click.UsageError("--labels belongs to an ARCHIVE; a dataset has its labels already")
    output = output_of(ctx)
    size_mb = archive.stat().st_size / 1e6 if archive else 0.0
    copied = 0
    with connected() as client, output.steps() as steps:

        def on_copied(more: int) -> None:
            nonlocal copied
            copied += more
            steps.step("copying", copied / 1e6, size_mb, unit="MB")

        if not detach:
            check_may_follow(client)
        if archive:
            run_id = client.submit_dataset(
                archive, name=name, params=params, labels=labels, train=not look, on_copied=on_copied
            )
        else:
            run_id = client.train_dataset(client.resolve_dataset(str(dataset)), name=name, params=params, edits=edits)
        if detach:
            _tell_run(ctx, output, client, client.runs.get(run_id))
            return
        steps.line(run_id)
        _follow_run(ctx, output, client, run_id, timeout_s, steps)


def _follow_run(
    ctx: click.Context, output: Output, client: Client, run_id: str, timeout_s: float | None, steps: Any
) -> None:
    from shared.cli.follow import follow_run  # noqa: PLC0415

    with resume_hint(ctx, run_id, "runs"):
        record = follow_run(client, run_id, steps, timeout_s)
    _tell_run(ctx, output, client, record)


def _tell_run(ctx: click.Context, output: Output, client: Client, run: Run) -> None:
    """Prints how a run stands, and ends with an exit code that fits."""
    from shared.cli.follow import place_of  # noqa: PLC0415
    from shared.cli.output import percent  # noqa: PLC0415

    if output.as_json:
        output.document({"schema": 1, **run.reply()})
    elif run.model:
        metrics = run.metrics or {}
        accuracy = percent(metrics.get("test_accuracy") or metrics.get("val_accuracy"))
        output.line(
            f"{run.run_id}: registered as version {run.model.version}, accuracy {accuracy} on test faces; "
            f"{place_of(client, run.model.version)}",
            "green",
        )
        for warning in run.warnings:
            output.line(f"warning: {warning}", "yellow")
    elif run.state == "ingested":
        output.line(f"{run.run_id}: read as dataset {run.dataset}; look at it in the dashboard", "green")
        output.line(f"train on it with: genderline train --dataset {run.dataset}")
    elif run.error:
        output.error(f"{run.run_id} {run.state}: {run.error.code}: {run.error.message}")
    else:
        output.line(f"{run.run_id}: {run.state}")
    if run.state.is_final and run.state not in {"registered", "ingested"}:
        ctx.exit(1)


@click.command()
@click.argument("sha256", required=False)
@annotation_options
@json_option
@click.pass_context
def datasets(ctx: click.Context, sha256: str | None, changes: Changes) -> None:
    """List the datasets, or show or rename one."""
    from shared.cli.show import show_dataset, show_datasets  # noqa: PLC0415

    with connected() as client:
        if sha256 is None:
            show_datasets(output_of(ctx), client, tag=changes.tag_to_list())
            return
        sha256 = client.resolve_dataset(sha256)
        if changes:
            annotate(ctx, client, "dataset", sha256, changes)
        else:
            show_dataset(output_of(ctx), client, sha256)


@click.command()
@click.argument("run_id", required=False)
@click.option("--follow", is_flag=True, help="Follow the run until it ends.")
@click.option("--cancel", is_flag=True, help="Cancel the run.")
@click.option("--retry", is_flag=True, help="Send a failed run back to its queue.")
@click.option("--dismiss", is_flag=True, help="Take a failed run off what needs attention on the dashboard.")
@annotation_options
@json_option
@click.pass_context
def runs(
    ctx: click.Context,
    run_id: str | None,
    follow: bool,
    cancel: bool,
    retry: bool,
    dismiss: bool,
    changes: Changes,
) -> None:
    """List the training runs, or show or rename one."""
    from shared.cli.show import show_run, show_runs  # noqa: PLC0415
    from shared.records.dismissals import dismiss_failure  # noqa: PLC0415

    output = output_of(ctx)
    if run_id is None and (follow or cancel or retry or dismiss):
        raise click.UsageError("--follow, --cancel, --retry and --dismiss need a RUN_ID")
    if run_id is not None:
        changes.check_alone(follow or cancel or retry or dismiss)
    with connected() as client:
        if run_id is None:
            show_runs(output, client, tag=changes.tag_to_list())
            return
        if changes:
            annotate(ctx, client, "run", run_id, changes)
            return
        if retry:
            run_id = client.retry_run(run_id)
            output.remark(f"{run_id} is queued again")
        record = client.runs.get(run_id)
        if dismiss:
            dismiss_failure(client.store, record)
            output.remark(f"dismissed the failure of {run_id}")
        if cancel:
            client.runs.request_cancel(run_id)
            output.remark(f"cancelling {run_id}")
        if follow:
            with output.steps() as steps:
                _follow_run(ctx, output, client, run_id, None, steps)
        elif not cancel:
            show_run(output, client, record)
        elif output.as_json:
            output.document(record.as_dict())
