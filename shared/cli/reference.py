"""Commands that list what can be set, measured and go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shared.cli.base import Command, json_option, output_of, settings_in_force

if TYPE_CHECKING:
    from shared.cli.reference_tables import Reference


def _markdown_option(command: Command) -> Command:
    return click.option("--markdown", is_flag=True, help="Print the README's table.")(command)


def _print_reference(ctx: click.Context, table: Reference, markdown: Reference | None) -> None:
    output = output_of(ctx)
    if output.as_json:
        output.document(table.as_dicts())
    elif markdown is not None:
        for line in markdown.markdown().splitlines():
            output.line(line)
    else:
        output.table([heading.upper() for heading in table.headings], table.rows)


@click.command()
@_markdown_option
@json_option
@click.pass_context
def settings(ctx: click.Context, markdown: bool) -> None:
    """List every setting: its value, its default and what it means."""
    from shared.cli.reference_tables import settings_now, settings_reference  # noqa: PLC0415

    _print_reference(ctx, settings_now(settings_in_force()), settings_reference() if markdown else None)


@click.command()
@_markdown_option
@json_option
@click.pass_context
def params(ctx: click.Context, markdown: bool) -> None:
    """List every training parameter, for `train --param`."""
    from shared.cli.reference_tables import params_reference  # noqa: PLC0415

    _print_reference(ctx, params_reference(), params_reference() if markdown else None)


@click.command()
@_markdown_option
@json_option
@click.pass_context
def metrics(ctx: click.Context, markdown: bool) -> None:
    """List every metric that the services export."""
    from shared.cli.reference_tables import metrics_reference  # noqa: PLC0415

    _print_reference(ctx, metrics_reference(), metrics_reference() if markdown else None)


@click.command()
@_markdown_option
@json_option
@click.pass_context
def errors(ctx: click.Context, markdown: bool) -> None:
    """List every error code."""
    from shared.cli.reference_tables import errors_reference  # noqa: PLC0415

    _print_reference(ctx, errors_reference(), errors_reference() if markdown else None)
