"""Commands for failed messages, which lie in the dead-letter queue."""

from __future__ import annotations

from collections.abc import Callable

import click

from shared.cli.base import connected, json_option, output_of


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def dead(ctx: click.Context) -> None:
    """List, retry or drop failed messages, which lie in the dead-letter queue."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(dead_list)


@dead.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="The most to show.")
@json_option
@click.pass_context
def dead_list(ctx: click.Context, limit: int = 100) -> None:
    """List the oldest failed messages."""
    from shared.cli.show import show_dead  # noqa: PLC0415

    with connected() as client:
        show_dead(output_of(ctx), client.broker, client.broker.dead_letters(limit))


@dead.command("retry")
@click.argument("dead_ids", metavar="[ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@json_option
@click.pass_context
def dead_retry(ctx: click.Context, dead_ids: tuple[str, ...], everything: bool) -> None:
    """Re-queue failed messages: each goes back to the queue that it came from."""
    wanted = _wanted(dead_ids, everything)
    with connected() as client:
        _handle(ctx, "retried", client.retry_dead, wanted)


@dead.command("drop")
@click.argument("dead_ids", metavar="[ID]…", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All of them.")
@json_option
@click.pass_context
def dead_drop(ctx: click.Context, dead_ids: tuple[str, ...], everything: bool) -> None:
    """Delete failed messages."""
    wanted = _wanted(dead_ids, everything)
    with connected() as client:
        _handle(ctx, "dropped", client.broker.drop_dead, wanted)


def _wanted(dead_ids: tuple[str, ...], everything: bool) -> list[str] | None:
    if bool(dead_ids) == everything:
        raise click.UsageError("give IDs of failed messages, or --all")
    return None if everything else list(dead_ids)


def _handle(ctx: click.Context, verb: str, handle: Callable[[list[str] | None], int], wanted: list[str] | None) -> None:
    """Retries or drops, and tells how many and which there were not."""
    output = output_of(ctx)
    unknown: list[str] = []
    if wanted is None:
        count = handle(None)
    else:
        names = list(dict.fromkeys(wanted))
        unknown = [dead_id for dead_id in names if not handle([dead_id])]
        count = len(names) - len(unknown)
    if output.as_json:
        output.document({verb: count})
    else:
        output.line(f"{verb} {count:,}")
    if unknown:
        output.error(f"no failed message has the ID {' or '.join(map(repr, unknown))}")
        ctx.exit(1)
