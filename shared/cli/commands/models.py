"""Commands for the registry: which model is in production, and which one challenges it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shared.cli.annotate import Changes, annotate, annotation_options
from shared.cli.base import connected, json_option, output_of

if TYPE_CHECKING:
    from shared.client import Client

_reason_option = click.option(
    "--reason", default="by hand", show_default=True, help="Why; recorded in the history of promotions."
)


class _Models(click.Group):
    """A group whose command may be a version's number: that version's card is shown."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0].isdecimal():
            return super().resolve_command(ctx, ["show", *args])
        return super().resolve_command(ctx, args)


@click.group(cls=_Models, invoke_without_command=True, subcommand_metavar="[VERSION | import starter]")
@annotation_options
@json_option
@click.pass_context
def models(ctx: click.Context, changes: Changes) -> None:
    """List the models, show one's card, rename one, or import the starter."""
    from shared.cli.show import show_models  # noqa: PLC0415

    if ctx.invoked_subcommand is None:
        with connected() as client:
            show_models(output_of(ctx), client, tag=changes.tag_to_list())
    elif changes:
        raise click.UsageError("--name, --note, --tag and --untag stand behind the VERSION that they belong to")


@models.command("show", hidden=True)
@click.argument("version", type=click.IntRange(min=1))
@click.option("--threshold", type=click.FloatRange(0, 1), help="Show how well it predicts at this decision threshold.")
@click.option("--dataset", metavar="SHA256", help="On the test faces of this dataset; by default of its own.")
@annotation_options
@json_option
@click.pass_context
def models_show(
    ctx: click.Context, version: int, threshold: float | None, dataset: str | None, changes: Changes
) -> None:
    """Show a version's card or figures, or rename it."""
    from shared.cli.show import show_measures, show_model  # noqa: PLC0415

    changes.check_alone(threshold is not None or dataset is not None)
    with connected() as client:
        if changes:
            annotate(ctx, client, "model", str(version), changes)
        elif threshold is not None or dataset:
            at = 0.5 if threshold is None else threshold
            sha256 = client.resolve_dataset(dataset) if dataset else None
            show_measures(output_of(ctx), client.measure(version, dataset=sha256, threshold=at))
        else:
            show_model(output_of(ctx), client, version)


@models.command("import")
@click.argument("name", type=click.Choice(["starter"]))
@json_option
@click.pass_context
def models_import(ctx: click.Context, name: str) -> None:
    """Register the weights that training begins from as a model, which answers before anybody has trained.

    It becomes the champion where there is none. The gate replaces it by the first better model.
    """
    output = output_of(ctx)
    with connected() as client:
        version = _register_starter()
        client.adopt(version, "imported: the first model")
        champion = client.registry.aliases().champion
    if output.as_json:
        output.document({"version": version, "champion": champion})
    elif champion == version:
        output.line(f"the {name} is version {version}, the champion")
    else:
        output.line(f"the {name} is version {version}; version {champion} stays the champion")


@click.command()
@click.argument("version", type=click.IntRange(min=1))
@_reason_option
@json_option
@click.pass_context
def promote(ctx: click.Context, version: int, reason: str) -> None:
    """Make a version the champion, the model in production."""
    with connected() as client:
        client.promote(version, reason)
        _tell_champion(ctx, client)


@click.command()
@_reason_option
@json_option
@click.pass_context
def rollback(ctx: click.Context, reason: str) -> None:
    """Make the previous champion the champion again."""
    with connected() as client:
        client.rollback(reason)
        _tell_champion(ctx, client)


@click.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@click.option("--clear", is_flag=True, help="Let no model challenge the champion.")
@_reason_option
@json_option
@click.pass_context
def challenge(ctx: click.Context, version: int | None, clear: bool, reason: str) -> None:
    """Make a version the challenger: it answers a share of live traffic beside the champion, for comparison only.

    GENDERLINE_SHADOW_SHARE is that share. Nobody sees the answers.
    """
    if (version is None) != clear:
        raise click.UsageError("give a VERSION, or --clear")
    output = output_of(ctx)
    with connected() as client:
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


def _register_starter() -> int:
    """Registers the starter and returns its version, in a process of its own: only the trainer can export a model."""
    import json  # noqa: PLC0415
    import subprocess  # noqa: PLC0415
    import sys  # noqa: PLC0415
    from importlib.util import find_spec  # noqa: PLC0415

    from shared.errors import Conflict  # noqa: PLC0415

    if find_spec("torch") is None:
        raise Conflict("the trainer exports the starter, and is not installed: pip install 'genderline[trainer]'")
    done = subprocess.run(
        [sys.executable, "-m", "trainer.release.import_starter"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        last = (done.stderr.strip() or "no word").splitlines()[-1]
        raise Conflict(f"the starter cannot be registered: {last}")
    version: int = json.loads(done.stdout.splitlines()[-1])["version"]
    return version


def _tell_champion(ctx: click.Context, client: Client) -> None:
    output, aliases = output_of(ctx), client.registry.aliases()
    if output.as_json:
        output.document({"champion": aliases.champion, "previous": aliases.previous})
    else:
        output.line(f"version {aliases.champion} is the champion; the previous one is {aliases.previous or 'none'}")
