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


@click.command()
@click.argument("version", type=click.IntRange(min=1), required=False)
@annotation_options
@json_option
@click.pass_context
def models(ctx: click.Context, version: int | None, changes: Changes) -> None:
    """List the models, or show one's card, or rename one."""
    from shared.cli.show import show_model, show_models  # noqa: PLC0415

    with connected() as client:
        if version is None:
            show_models(output_of(ctx), client, tag=changes.tag_to_list())
        elif changes:
            annotate(ctx, client, "model", str(version), changes)
        else:
            show_model(output_of(ctx), client, version)


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


def _tell_champion(ctx: click.Context, client: Client) -> None:
    output, aliases = output_of(ctx), client.registry.aliases()
    if output.as_json:
        output.document({"champion": aliases.champion, "previous": aliases.previous})
    else:
        output.line(f"version {aliases.champion} is the champion; the previous one is {aliases.previous or 'none'}")
