"""The command line, `genderline`: everything a user can ask, through the client.

Exit code 0 is success, 1 a failed or rejected run or job, or a broker or store that is away, 2 wrong usage, and 130
Ctrl-C. What is slow to import is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

from typing import Any

import click

from shared.cli.base import output_of
from shared.cli.commands import (
    compare,
    datasets,
    dead,
    definitions,
    delete,
    demo,
    export,
    models,
    predictions,
    reference,
    services,
    training,
)
from shared.errors import GenderlineError


class _Commands(click.Group):
    """Turns our errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        from shared.runtime.settings import SettingsError  # noqa: PLC0415

        try:
            return super().invoke(ctx)
        except GenderlineError as error:
            _fail(ctx, error.code, str(error))
        except SettingsError as error:
            _fail(ctx, "settings", str(error), exit_code=2)
        except BrokenPipeError:
            raise  # the reader of our output, such as `head`, has had enough: click ends quietly
        except OSError as error:
            _fail(ctx, "file", f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except KeyboardInterrupt:
            ctx.exit(130)


def _fail(ctx: click.Context, code: str, text: str, *, exit_code: int = 1) -> None:
    output = output_of(ctx)
    if output.as_json:
        output.document({"error": {"code": code, "message": text}})
    else:
        output.error(text)
    ctx.exit(exit_code)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="genderline", prog_name="genderline")
def main() -> None:
    """Trains and serves a gender classifier for face images.

    Settings are environment variables; `genderline settings` lists them.
    """


for _command in (
    services.up,
    services.status,
    services.doctor,
    training.train,
    training.runs,
    training.datasets,
    models.models,
    compare.compare,
    models.promote,
    models.rollback,
    models.challenge,
    datasets.dataset,
    predictions.predict,
    predictions.explain,
    predictions.jobs,
    dead.dead,
    delete.delete,
    export.export,
    demo.sample,
    demo.demo,
    definitions.definitions,
    reference.settings,
    reference.params,
    reference.metrics,
    reference.errors,
):
    main.add_command(_command)
