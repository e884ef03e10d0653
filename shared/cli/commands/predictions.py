"""Commands that predict: a few images at once, or many as a job."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from shared.cli.annotate import Changes, annotate, annotation_options
from shared.cli.base import ANY, FILE, RESULTS, connected, json_option, output_of, resume_hint, settings_in_force

if TYPE_CHECKING:
    from shared.cli.output import Output

_SHADES: Final = " ░▒▓█"


@click.command()
@click.argument("paths", metavar="PATH…", nargs=-1, required=True, type=ANY)
@click.option("--out", type=RESULTS, help="Write the results to this CSV file.")
@click.option("--model-version", type=click.IntRange(min=1), help="Ask this version instead of the champion.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds to wait for each piece of work; by default 60 for images, and without limit for a job.",
)
@json_option
@click.pass_context
def predict(
    ctx: click.Context, paths: tuple[Path, ...], out: Path | None, model_version: int | None, timeout_s: float | None
) -> None:
    """Predict images, folders or archives; a job where there are many.

    More than 512 images, and every archive, are sent as a job. Exit code 1 means that no image at all has a prediction
    or that a job did not finish.
    """
    from shared.cli.follow import warn_if_no_worker  # noqa: PLC0415
    from shared.cli.predict_paths import DIRECT_LIMIT, found_inputs, predict, write_rows  # noqa: PLC0415

    output = output_of(ctx)
    images, archives = found_inputs(paths)
    if not images and not archives:
        raise click.UsageError(f"no image (JPEG, PNG, WebP, BMP) in {', '.join(map(str, paths))}")
    if archives and model_version is not None:
        raise click.UsageError("an archive becomes a job, which the champion answers; leave out --model-version")
    # Following a job warns by itself that nobody takes it up.
    directly = bool(images) and (len(images) <= DIRECT_LIMIT or model_version is not None)
    with (
        connected() as client,
        output.steps() as steps,
        warn_if_no_worker(client, "inference", steps) if directly else contextlib.nullcontext(),
    ):
        found = predict(client, images, archives, steps, model_version=model_version, timeout_s=timeout_s)
    if out is not None:
        with out.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, found.rows)
    _tell_predictions(output, found, out)
    if found.failed or found.errors == len(found.rows):
        ctx.exit(1)


def _tell_predictions(output: Output, found: Any, out: Path | None) -> None:
    if output.as_json:
        output.document(
            {
                "schema": 1,
                "models": found.models,
                "jobs": [job.job_id for job in found.jobs],
                "counts": {"images": len(found.rows), "errors": found.errors},
                "accuracy": found.accuracy,
                "predictions": found.rows,
            }
        )
        return
    if found.rows or not found.failed:
        _show_predictions(output, found, out)
    if job := found.failed:
        fault = job.error
        output.error(f"{job.job_id} {job.state}" + (f": {fault.code}: {fault.message}" if fault else ""))


def _show_predictions(output: Output, found: Any, out: Path | None) -> None:
    from shared.cli.output import percent  # noqa: PLC0415

    if out is None:
        output.table(
            ["IMAGE", "GENDER", "P(FEMALE)", "CONFIDENCE", "LABEL", "ERROR"],
            [
                (
                    row["name"],
                    row["gender"],
                    None if row["probability_female"] is None else f"{row['probability_female']:.3f}",
                    percent(row["confidence"]),
                    row["true_gender"],
                    row["error"] or "",
                )
                for row in found.rows
            ],
            right=[2, 3],
        )
    versions = ", ".join(str(model["version"]) for model in found.models)
    parts = [f"{len(found.rows):,} images", f"{found.errors:,} errors"]
    parts += [f"model version {versions}"] if versions else []
    parts += [f"accuracy {percent(found.accuracy)} on the labelled ones"] if found.accuracy is not None else []
    parts += [f"written to {out}"] if out is not None else []
    output.remark(", ".join(parts))


@click.command()
@click.argument("image", type=FILE)
@click.option("--model-version", type=click.IntRange(min=1), help="Ask this version instead of the champion.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds to wait for the answer.",
)
@json_option
@click.pass_context
def explain(ctx: click.Context, image: Path, model_version: int | None, timeout_s: float) -> None:
    """Explain the prediction of one image: which areas of it mattered.

    The darker a place on the map, the more confidence is lost where it is covered.
    """
    from shared.cli.output import percent  # noqa: PLC0415
    from shared.explanation import explain as explain_image  # noqa: PLC0415
    from shared.faces.decode import ImageLimits  # noqa: PLC0415

    output = output_of(ctx)
    limits = ImageLimits.from_settings(settings_in_force())
    with connected() as client:
        found = explain_image(client, image.read_bytes(), limits, model_version=model_version, timeout_s=timeout_s)
    if output.as_json:
        output.document(dataclasses.asdict(found))
        return
    most = max(0.02, *(drop for row in found.drop for drop in row))
    for row in found.drop:
        output.line("".join(2 * _SHADES[round((len(_SHADES) - 1) * max(0.0, drop) / most)] for drop in row))
    female = found.probability_female
    gender = "female" if female >= 0.5 else "male"
    version = found.model["version"] if found.model else None
    output.line(f"{gender}, {percent(max(female, 1 - female))} confidence, model version {version}")
    output.line(f"covering the darkest place lowers it by {100 * max(0.0, *map(max, found.drop)):.0f} points")


@click.command()
@click.argument("job_id", required=False)
@click.option("--follow", is_flag=True, help="Follow the job until it ends.")
@click.option("--cancel", is_flag=True, help="Cancel the job.")
@click.option("--retry", is_flag=True, help="Send a failed job back to its queue.")
@click.option("--dismiss", is_flag=True, help="Take a failed job off what needs attention on the dashboard.")
@click.option("--out", type=RESULTS, help="Write the finished job's results to this CSV file.")
@annotation_options
@json_option
@click.pass_context
def jobs(
    ctx: click.Context,
    job_id: str | None,
    follow: bool,
    cancel: bool,
    retry: bool,
    dismiss: bool,
    out: Path | None,
    changes: Changes,
) -> None:
    """List the batch jobs, or show or rename one."""
    from shared.cli.follow import follow_job  # noqa: PLC0415
    from shared.cli.show import show_job, show_jobs  # noqa: PLC0415
    from shared.records.dismissals import dismiss_failure  # noqa: PLC0415

    output = output_of(ctx)
    if job_id is None and (follow or cancel or retry or dismiss or out):
        raise click.UsageError("--follow, --cancel, --retry, --dismiss and --out need a JOB_ID")
    if job_id is not None:
        changes.check_alone(follow or cancel or retry or dismiss or out is not None)
    with connected() as client:
        if job_id is None:
            show_jobs(output, client, tag=changes.tag_to_list())
            return
        if changes:
            annotate(ctx, client, "job", job_id, changes)
            return
        if retry:
            client.retry_job(job_id)
            output.remark(f"{job_id} is queued again")
        record = client.jobs.get(job_id)
        if dismiss:
            dismiss_failure(client.store, record)
            output.remark(f"dismissed the failure of {job_id}")
        if cancel:
            client.jobs.request_cancel(job_id)
            output.remark(f"cancelling {job_id}")
        if follow:
            with output.steps() as steps, resume_hint(ctx, job_id, "jobs"):
                record = follow_job(client, job_id, steps)
        show_job(output, client, record)
        if out is not None:
            out.write_bytes(client.store.get(client.jobs.results_key(job_id)))
            output.remark(f"written to {out}")
        if follow and record.state != "finished":
            ctx.exit(1)
