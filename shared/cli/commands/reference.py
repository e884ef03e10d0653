"""Commands that list what can be set, measured and go wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from shared.cli.base import json_option, output_of, settings_in_force

if TYPE_CHECKING:
    from shared.cli.reference_tables import Reference


@click.command()
@json_option
@click.pass_context
def settings(ctx: click.Context) -> None:
    """List every setting: its value, its default and what it means."""
    from shared.cli.reference_tables import settings_now  # noqa: PLC0415

    _print_reference(ctx, settings_now(settings_in_force()))


@click.command()
@json_option
@click.pass_context
def params(ctx: click.Context) -> None:
    """List every training parameter, for `train --param`."""
    from shared.cli.reference_tables import params_reference  # noqa: PLC0415

    _print_reference(ctx, params_reference())


@click.command()
@json_option
@click.pass_context
def metrics(ctx: click.Context) -> None:
    """List every metric that the services export."""
    from shared.cli.reference_tables import metrics_reference  # noqa: PLC0415

    _print_reference(ctx, metrics_reference())


@click.command()
@json_option
@click.pass_context
def errors(ctx: click.Context) -> None:
    """List every error code."""
    from shared.cli.reference_tables import errors_reference  # noqa: PLC0415

    _print_reference(ctx, errors_reference())


def _print_reference(ctx: click.Context, table: Reference) -> None:
    output = output_of(ctx)
    if output.as_json:
        output.document(table.as_dicts())
    else:
        output.table([heading.upper() for heading in table.headings], table.rows)
