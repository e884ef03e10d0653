"""What the commands for datasets, runs, models and jobs share: names, notes and tags."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from shared.cli.base import Command, output_of

if TYPE_CHECKING:
    from shared.client import Client
    from shared.records.annotations import Annotation, Kind


@dataclass(frozen=True, slots=True)
class Changes:
    """What `--name`, `--note`, `--tag` and `--untag` ask for."""

    name: str | None
    note: str | None
    tags: tuple[str, ...]
    untags: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.name is not None or self.note is not None or bool(self.tags or self.untags)

    def tag_to_list(self) -> str | None:
        """Returns the tag that a list is asked for.

        Raises:
            click.UsageError: something is to be changed, and nothing is named that it belongs to.
        """
        if self.name is not None or self.note is not None or self.untags or len(self.tags) > 1:
            raise click.UsageError("--name, --note and --untag need an ID; a list takes one --tag")
        return next(iter(self.tags), None)

    def check_alone(self, other_options: bool) -> None:
        """Checks that nothing else is asked for in the same command.

        Raises:
            click.UsageError: something is.
        """
        if self and other_options:
            raise click.UsageError("--name, --note, --tag and --untag go with no other option; run two commands")


def annotation_options(command: Command) -> Command:
    """Gives a command `--name`, `--note`, `--tag` and `--untag`, as its argument `changes`."""
    options = (
        click.option("--name", help="Name it so; an empty text gives back the name that it came with."),
        click.option("--note", help="Write a note."),
        click.option("--tag", "tags", multiple=True, help="Add a tag; without an ID, list those that have it."),
        click.option("--untag", "untags", multiple=True, help="Take a tag away."),
    )

    @functools.wraps(command)
    def invoke(*args: Any, name: str | None, note: str | None, tags: Any, untags: Any, **others: Any) -> Any:
        return command(*args, changes=Changes(name, note, tuple(tags), tuple(untags)), **others)

    wrapped: Any = invoke
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def annotate(ctx: click.Context, client: Client, kind: Kind, which: str, changes: Changes) -> None:
    """Changes name, note and tags of something, and says what they are now."""
    output = output_of(ctx)
    annotation = client.annotate(
        kind, which, name=changes.name, note=changes.note, add_tags=changes.tags, remove_tags=changes.untags
    )
    if output.as_json:
        output.document({"kind": kind, "id": which, "annotation": annotation.as_dict()})
        return
    output.line(f"{kind} {which}: {describe(annotation) or 'no name, note or tags of its own'}")


def describe(annotation: Annotation | None) -> str | None:
    """Returns an annotation in a line; None where there is nothing to say."""
    if annotation is None:
        return None
    parts = [
        f"name {annotation.name}" if annotation.name else "",
        f"tags {', '.join(annotation.tags)}" if annotation.tags else "",
        f"note {annotation.note}" if annotation.note else "",
    ]
    return "; ".join(part for part in parts if part) or None


def tags_of(annotations: Mapping[str, Annotation], which: str) -> str | None:
    """Returns the tags of something, for a table."""
    found = annotations.get(which)
    return ", ".join(found.tags) if found and found.tags else None
