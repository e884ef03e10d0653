"""The command line, `genderline`: everything a user can ask, through the client.

Exit code 0 is success, 1 a failed or rejected run or job, or a broker or store that is away, 2 wrong usage, and 130
Ctrl-C. What is slow to import is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from shared.errors import GenderlineError

if TYPE_CHECKING:
    from shared.cli_output import Output
    from shared.client import Client
    from shared.reference import Reference

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_ANY: Final = click.Path(exists=True, path_type=Path)
_NEW: Final = click.Path(dir_okay=False, writable=True, path_type=Path)
_SERVICES: Final = click.Choice(["trainer", "inference", "dashboard"])
_JSON: Final = "json"
"""Where the context remembers that `--json` was given, for whoever prints an error."""


class _Commands(click.Group):
    """Turns our errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        from shared.settings import SettingsError  # noqa: PLC0415

        try:
            return super().invoke(ctx)
        except GenderlineError as error:
            _fail(ctx, error.code, str(error))
        except SettingsError as error:
            _fail(ctx, "settings", str(error), exit_code=2)
        except BrokenPipeError:
            raise  # whoever read our output, such as `head`, has had enough: click ends quietly
        except OSError as error:
            _fail(ctx, "file", f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except KeyboardInterrupt:
            ctx.exit(130)


def _fail(ctx: click.Context, code: str, text: str, *, exit_code: int = 1) -> None:
    output = _output(ctx)
    if output.as_json:
        output.document({"error": {"code": code, "message": text}})
    else:
        output.error(text)
    ctx.exit(exit_code)


def _remember_json(ctx: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        ctx.meta[_JSON] = True


def _json_option(command: _Command) -> _Command:
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_json,
        help="Print one JSON document, for programs.",
    )(command)


def _output(ctx: click.Context) -> Output:
    from shared.cli_output import Output  # noqa: PLC0415

    return Output(as_json=ctx.meta.get(_JSON, False))


@contextlib.contextmanager
def _client() -> Iterator[Client]:
    from shared.client import open_client  # noqa: PLC0415
    from shared.settings import load_settings  # noqa: PLC0415

    with open_client(load_settings()) as client:
        yield client


@contextlib.contextmanager
def _followed(ctx: click.Context, what: str, command: str) -> Iterator[None]:
    """Says at Ctrl-C that what was followed goes on, and how to follow it again."""
    try:
        yield
    except KeyboardInterrupt:
        _output(ctx).remark(f"{what} goes on; follow it again with: genderline {command} {what} --follow")
        ctx.exit(130)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="genderline", prog_name="genderline")
def main() -> None:
    """Trains and serves a gender classifier for face images.

    Settings are environment variables; `genderline settings` lists them.
    """


# -- services


@main.command()
@click.option("--only", type=_SERVICES, multiple=True, help="Start this service only; may be given again.")
@click.pass_context
def up(ctx: click.Context, only: tuple[str, ...]) -> None:
    """Start all services on this machine; Ctrl-C drains them."""
    from shared.services import SERVICES, choose_ports, serve, service_children, whereabouts  # noqa: PLC0415
    from shared.settings import load_settings  # noqa: PLC0415

    output = _output(ctx)
    settings = load_settings()
    ports = choose_ports(settings, [service for service in SERVICES if service in (only or SERVICES)])
    for what, where in whereabouts(settings, ports):
        output.line(f"{what:<18} {where}")
    serve(service_children(ports), output.remark)


@main.command()
@_json_option
@click.pass_context
def status(ctx: click.Context) -> None:
    """Show who is up, what waits, what serves and what is being trained."""
    from shared.cli_show import show_status  # noqa: PLC0415

    with _client() as client:
        show_status(_output(ctx), client)


# -- training


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


@main.command()
@click.argument("archive", metavar="ZIP", type=_FILE)
@click.option("--name", help="What the run is called; by default the file's name.")
@click.option("--param", "params", multiple=True, metavar="KEY=VALUE", callback=_parameters, help="Training parameter.")
@click.option("--detach", is_flag=True, help="Submit it and do not wait.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0), help="Seconds to follow it; it goes on after.")
@_json_option
@click.pass_context
def train(
    ctx: click.Context, archive: Path, name: str | None, params: dict[str, Any], detach: bool, timeout_s: float | None
) -> None:
    """Train a model on a zip of labelled faces and follow it."""
    output = _output(ctx)
    size_mb = archive.stat().st_size / 1e6
    copied = 0
    with _client() as client, output.steps() as steps:

        def on_copied(more: int) -> None:
            nonlocal copied
            copied += more
            steps.step("copying", copied / 1e6, size_mb, unit="MB")

        run_id = client.submit_dataset(archive, name=name, params=params, on_copied=on_copied)
        if detach:
            _tell_run(ctx, output, client, client.runs.get(run_id))
            return
        steps.line(run_id)
        _follow_run(ctx, output, client, run_id, timeout_s, steps)


def _follow_run(
    ctx: click.Context, output: Output, client: Client, run_id: str, timeout_s: float | None, steps: Any
) -> None:
    from shared.cli_follow import follow_run  # noqa: PLC0415

    with _followed(ctx, run_id, "runs"):
        record = follow_run(client, run_id, steps, timeout_s)
    _tell_run(ctx, output, client, record)


def _tell_run(ctx: click.Context, output: Output, client: Client, record: Mapping[str, Any]) -> None:
    """Prints how a run stands, and ends with an exit code that fits."""
    from shared.cli_output import percent  # noqa: PLC0415
    from shared.runs import Runs  # noqa: PLC0415

    state, run_id = record["state"], record["run_id"]
    if output.as_json:
        output.document({"schema": 1, **Runs.reply(record)})
    elif state == "registered":
        version = record["model"]["version"]
        aliases = client.registry.aliases()
        place = "the champion now" if aliases.champion == version else f"the champion is still {aliases.champion}"
        accuracy = percent(record["metrics"].get("test_accuracy") or record["metrics"].get("val_accuracy"))
        output.line(
            f"{run_id}: registered as version {version}, accuracy {accuracy} on held-out faces; {place}", "green"
        )
    elif record["error"]:
        output.error("{run_id} {state}: {error[code]}: {error[message]}".format(**record))
    else:
        output.line(f"{run_id}: {state}")
    if state in {"rejected", "failed", "cancelled"}:
        ctx.exit(1)


@main.command()
@click.argument("run_id", required=False)
@click.option("--follow", is_flag=True, help="Follow the run until it ends.")
@click.option("--cancel", is_flag=True, help="Ask for the run to stop.")
@_json_option
@click.pass_context
def runs(ctx: click.Context, run_id: str | None, follow: bool, cancel: bool) -> None:
    """List the training runs, or show one."""
    from shared.cli_show import show_run, show_runs  # noqa: PLC0415

    output = _output(ctx)
    if run_id is None and (follow or cancel):
        raise click.UsageError("--follow and --cancel need a RUN_ID")
    with _client() as client:
        if run_id is None:
            show_runs(output, client.runs.all())
            return
        record = client.runs.get(run_id)
        if cancel:
            client.runs.request_cancel(run_id)
            output.remark(f"{run_id} was asked to stop")
        if follow:
            with output.steps() as steps:
                _follow_run(ctx, output, client, run_id, None, steps)
        elif not cancel:
            show_run(output, client, record)
        elif output.as_json:
            output.document(record)


# -- models


@main.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@_json_option
@click.pass_context
def models(ctx: click.Context, version: int | None) -> None:
    """List the models, or show one's card."""
    from shared.cli_show import show_model, show_models  # noqa: PLC0415

    with _client() as client:
        if version is None:
            show_models(_output(ctx), client)
        else:
            show_model(_output(ctx), client, version)


@main.command()
@click.argument("version", type=click.IntRange(min=1))
@click.option("--reason", required=True, help="Why; it is kept in the registry's history.")
@_json_option
@click.pass_context
def promote(ctx: click.Context, version: int, reason: str) -> None:
    """Make a version the champion, which serves."""
    with _client() as client:
        client.promote(version, reason)
        _tell_champion(ctx, client)


@main.command()
@click.option("--reason", required=True, help="Why; it is kept in the registry's history.")
@_json_option
@click.pass_context
def rollback(ctx: click.Context, reason: str) -> None:
    """Make the previous champion the champion again."""
    with _client() as client:
        client.rollback(reason)
        _tell_champion(ctx, client)


@main.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--clear", is_flag=True, help="Let no model challenge the champion.")
@click.option("--reason", default="by hand", show_default=True, help="Why; it is kept in the registry's history.")
@_json_option
@click.pass_context
def challenge(ctx: click.Context, version: int | None, clear: bool, reason: str) -> None:
    """Let a version shadow the champion: it sees the share GENDERLINE_SHADOW_SHARE, and nobody its answers."""
    if (version is None) != clear:
        raise click.UsageError("give a VERSION, or --clear")
    output = _output(ctx)
    with _client() as client:
        if version is None:
            dismissed = client.dismiss(reason)
            text = f"version {dismissed} no longer challenges"
        else:
            client.challenge(version, reason)
            text = f"version {version} challenges version {client.registry.aliases().champion}"
        if output.as_json:
            aliases = client.registry.aliases()
            output.document({"champion": aliases.champion, "challenger": aliases.challenger})
        else:
            output.line(text)


def _tell_champion(ctx: click.Context, client: Client) -> None:
    output, aliases = _output(ctx), client.registry.aliases()
    if output.as_json:
        output.document({"champion": aliases.champion, "previous": aliases.previous})
    else:
        output.line(f"version {aliases.champion} is the champion; the previous one is {aliases.previous or 'none'}")


# -- predictions


@main.command()
@click.argument("paths", metavar="PATH…", nargs=-1, required=True, type=_ANY)
@click.option("--out", type=_NEW, help="Write the results to this CSV file.")
@click.option("--model-version", type=click.IntRange(min=1), help="Ask this version instead of the champion.")
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), help="Seconds to wait.")
@_json_option
@click.pass_context
def predict(
    ctx: click.Context, paths: tuple[Path, ...], out: Path | None, model_version: int | None, timeout_s: float | None
) -> None:
    """Predict images, folders or archives; a job where there are many.

    More than 512 images, and every archive, are sent as a job. Exit code 1 means that no image at all has a prediction
    or that a job did not finish.
    """
    from shared.cli_predict import found_inputs, predict, write_rows  # noqa: PLC0415

    output = _output(ctx)
    images, archives = found_inputs(paths)
    if not images and not archives:
        raise click.UsageError(f"no image (JPEG, PNG, WebP, BMP) in {', '.join(map(str, paths))}")
    if archives and model_version is not None:
        raise click.UsageError("an archive becomes a job, which the champion answers; leave out --model-version")
    with _client() as client, output.steps() as steps:
        found = predict(client, images, archives, steps, model_version=model_version, timeout_s=timeout_s)
    if out is not None:
        with out.open("w", encoding="utf-8", newline="") as file:
            write_rows(file, found.rows)
    _tell_predictions(output, found, out)
    if found.failed or found.errors == len(found.rows):
        ctx.exit(1)


def _tell_predictions(output: Output, found: Any, out: Path | None) -> None:
    from shared.cli_output import percent  # noqa: PLC0415

    if output.as_json:
        output.document(
            {
                "schema": 1,
                "models": found.models,
                "jobs": [job["job_id"] for job in found.jobs],
                "counts": {"images": len(found.rows), "errors": found.errors},
                "accuracy": found.accuracy,
                "predictions": found.rows,
            }
        )
        return
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
    if found.failed:
        output.error("{job_id} {state}: {error[code]}: {error[message]}".format(**found.failed))


@main.command()
@click.argument("job_id", required=False)
@click.option("--follow", is_flag=True, help="Follow the job until it ends.")
@click.option("--cancel", is_flag=True, help="Ask for the job to stop.")
@click.option("--out", type=_NEW, help="Write the finished job's results to this CSV file.")
@_json_option
@click.pass_context
def jobs(ctx: click.Context, job_id: str | None, follow: bool, cancel: bool, out: Path | None) -> None:
    """List the batch jobs, or show one."""
    from shared.cli_follow import follow_job  # noqa: PLC0415
    from shared.cli_show import show_job, show_jobs  # noqa: PLC0415

    output = _output(ctx)
    if job_id is None and (follow or cancel or out):
        raise click.UsageError("--follow, --cancel and --out need a JOB_ID")
    with _client() as client:
        if job_id is None:
            show_jobs(output, client, client.jobs.all())
            return
        record = client.jobs.get(job_id)
        if cancel:
            client.jobs.request_cancel(job_id)
            output.remark(f"{job_id} was asked to stop")
        if follow:
            with output.steps() as steps, _followed(ctx, job_id, "jobs"):
                record = follow_job(client, job_id, steps)
        show_job(output, client, record)
        if out is not None:
            out.write_bytes(client.store.get(client.jobs.results_key(job_id)))
            output.remark(f"written to {out}")
        if follow and record["state"] != "finished":
            ctx.exit(1)


# -- dead letters


@main.group(invoke_without_command=True)
@_json_option
@click.pass_context
def dead(ctx: click.Context) -> None:
    """Show, retry or drop what could not be processed."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(dead_list)


@dead.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The most to show.")
@_json_option
@click.pass_context
def dead_list(ctx: click.Context, limit: int = 100) -> None:
    """Show the oldest dead letters."""
    from shared.cli_show import show_dead  # noqa: PLC0415

    with _client() as client:
        show_dead(_output(ctx), client.broker, client.broker.dead_letters(limit))


@dead.command("retry")
@click.argument("dead_ids", metavar="[ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_json_option
@click.pass_context
def dead_retry(ctx: click.Context, dead_ids: tuple[str, ...], everything: bool) -> None:
    """Send dead letters back to where they came from."""
    wanted = _wanted(dead_ids, everything)
    with _client() as client:
        _tell_count(ctx, "retried", client.broker.retry_dead(wanted), wanted)


@dead.command("drop")
@click.argument("dead_ids", metavar="[ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@_json_option
@click.pass_context
def dead_drop(ctx: click.Context, dead_ids: tuple[str, ...], everything: bool) -> None:
    """Delete dead letters."""
    wanted = _wanted(dead_ids, everything)
    with _client() as client:
        _tell_count(ctx, "dropped", client.broker.drop_dead(wanted), wanted)


def _wanted(dead_ids: tuple[str, ...], everything: bool) -> list[str] | None:
    if bool(dead_ids) == everything:
        raise click.UsageError("name dead letters by their ID, or give --all")
    return None if everything else list(dead_ids)


def _tell_count(ctx: click.Context, verb: str, count: int, wanted: list[str] | None) -> None:
    output = _output(ctx)
    if output.as_json:
        output.document({verb: count})
    else:
        output.line(f"{verb} {count:,}")
    if wanted is not None and count < len(wanted):
        output.remark(f"{len(wanted) - count} of the ids are not among the dead letters")
        ctx.exit(1)


# -- trying things out


@main.command()
@click.argument("archive", metavar="ZIP", type=_NEW)
@click.option("--images", type=click.IntRange(min=1, max=1_000_000), required=True, help="How many faces to draw.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same faces.")
@click.option("--faults", is_flag=True, help="Add entries that will be rejected.")
@_json_option
@click.pass_context
def sample(ctx: click.Context, archive: Path, images: int, seed: int, faults: bool) -> None:
    """Draw a synthetic dataset, to try anything without real faces."""
    from shared.sample import draw_sample  # noqa: PLC0415

    output = _output(ctx)
    with output.steps() as steps:
        draw_sample(
            archive,
            images,
            seed,
            faults=faults,
            on_progress=lambda done, total: steps.step("drawing", done, total),
        )
        steps.finish()
    size = archive.stat().st_size
    if output.as_json:
        output.document({"path": str(archive), "images": images, "size_bytes": size})
    else:
        output.line(f"{archive}: {images:,} faces, {size / 1e6:.1f} MB")


@main.command(hidden=True)
@click.option("--dataset", type=_FILE, help="Train on this zip instead of a synthetic one.")
@click.option("--images", type=click.IntRange(min=20), default=1200, show_default=True, help="Synthetic faces to draw.")
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the faces; without it, as many as they need.")
@click.option("--once", is_flag=True, help="End when all is done instead of staying up.")
@click.pass_context
def demo(ctx: click.Context, dataset: Path | None, images: int, epochs: int | None, once: bool) -> None:
    """Run the main job from end to end; `make demo` calls it."""
    from shared.demo import Demo  # noqa: PLC0415
    from shared.settings import load_settings  # noqa: PLC0415

    ctx.exit(Demo(_output(ctx), load_settings(), dataset, images=images, epochs=epochs).run(stay=not once))


# -- reference


def _markdown_option(command: _Command) -> _Command:
    return click.option("--markdown", is_flag=True, help="Print the README's table.")(command)


def _print_reference(ctx: click.Context, table: Reference, markdown: Reference | None) -> None:
    output = _output(ctx)
    if output.as_json:
        output.document(table.as_dicts())
    elif markdown is not None:
        for line in markdown.markdown().splitlines():
            output.line(line)
    else:
        output.table([heading.upper() for heading in table.headings], table.rows)


@main.command()
@_markdown_option
@_json_option
@click.pass_context
def settings(ctx: click.Context, markdown: bool) -> None:
    """List every setting: its value, its default and what it means."""
    from shared.reference import settings_now, settings_reference  # noqa: PLC0415
    from shared.settings import load_settings  # noqa: PLC0415

    _print_reference(ctx, settings_now(load_settings()), settings_reference() if markdown else None)


@main.command()
@_markdown_option
@_json_option
@click.pass_context
def params(ctx: click.Context, markdown: bool) -> None:
    """List every training parameter, for `train --param`."""
    from shared.reference import params_reference  # noqa: PLC0415

    _print_reference(ctx, params_reference(), params_reference() if markdown else None)


@main.command()
@_markdown_option
@_json_option
@click.pass_context
def metrics(ctx: click.Context, markdown: bool) -> None:
    """List every metric that the services export."""
    from shared.reference import metrics_reference  # noqa: PLC0415

    _print_reference(ctx, metrics_reference(), metrics_reference() if markdown else None)


@main.command()
@_markdown_option
@_json_option
@click.pass_context
def errors(ctx: click.Context, markdown: bool) -> None:
    """List every error code."""
    from shared.reference import errors_reference  # noqa: PLC0415

    _print_reference(ctx, errors_reference(), errors_reference() if markdown else None)
