"""What the commands share: the kinds of their arguments, `--json`, and a client."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from shared.cli.output import Output
    from shared.client import Client
    from shared.runtime.settings import Settings

Command = TypeVar("Command", bound=Callable[..., Any])


class _NewInFolder(click.Path):
    """A file to write when the work is done, whose folder is looked at before it begins."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        if not path.parent.is_dir():
            self.fail(f"found no folder {str(path.parent)!r}, expected one to write {path.name!r} into", param, ctx)
        if not path.exists() and not os.access(path.parent, os.W_OK):
            self.fail(f"found the folder {str(path.parent)!r}, expected one that can be written", param, ctx)
        return path


FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
ANY: Final = click.Path(exists=True, path_type=Path)
NEW: Final = click.Path(dir_okay=False, writable=True, path_type=Path)
RESULTS: Final = _NewInFolder(dir_okay=False, writable=True, path_type=Path)
_JSON: Final = "json"
"""Where the context remembers that `--json` was given, for the code that prints an error."""


def _remember_json(ctx: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        ctx.meta[_JSON] = True


def json_option(command: Command) -> Command:
    """Gives a command the option `--json`."""
    return click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_json,
        help="Print one JSON document, for programs.",
    )(command)


def output_of(ctx: click.Context) -> Output:
    """Returns where the command prints to."""
    from shared.cli.output import Output  # noqa: PLC0415

    return Output(as_json=ctx.meta.get(_JSON, False))


def settings_in_force() -> Settings:
    """Returns the settings; warns of variables that look like one."""
    from shared.runtime.settings import load_settings, unknown_settings  # noqa: PLC0415

    settings = load_settings()
    for warning in unknown_settings():
        output_of(click.get_current_context()).remark(warning, "yellow")
    return settings


@contextlib.contextmanager
def private_files(settings: Settings) -> Iterator[None]:
    """Creates files inside the block, such as `broker.db`, with the permissions that GENDERLINE_UMASK leaves."""
    before = os.umask(int(settings.umask, 8))
    try:
        yield
    finally:
        os.umask(before)


@contextlib.contextmanager
def connected() -> Iterator[Client]:
    """Gives a client of the broker and the store that the settings name."""
    from shared.connect import open_client  # noqa: PLC0415

    settings = settings_in_force()
    with private_files(settings), open_client(settings) as client:
        yield client


@contextlib.contextmanager
def resume_hint(ctx: click.Context, what: str, command: str) -> Iterator[None]:
    """Says at Ctrl-C that what was followed goes on, and how to follow it again."""
    try:
        yield
    except KeyboardInterrupt:
        output_of(ctx).remark(f"{what} continues; follow it again with: genderline {command} {what} --follow")
        ctx.exit(130)
