"""Commands to try everything out without real faces."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from shared.cli.base import FILE, NEW, json_option, output_of, private_files, settings_in_force

if TYPE_CHECKING:
    pass


@click.command()
@click.argument("archive", metavar="ZIP", type=NEW)
@click.option("--images", type=click.IntRange(min=1, max=1_000_000), required=True, help="How many faces to generate.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same faces.")
@click.option("--faults", is_flag=True, help="Add entries that will be rejected.")
@json_option
@click.pass_context
def sample(ctx: click.Context, archive: Path, images: int, seed: int, faults: bool) -> None:
    """Generate a synthetic dataset, to try anything without real faces."""
    from shared.faces.synthetic import draw_sample  # noqa: PLC0415

    output = output_of(ctx)
    with output.steps() as steps:
        draw_sample(
            archive,
            images,
            seed,
            faults=faults,
            on_progress=lambda done, total: steps.step("generating", done, total),
        )
        steps.finish()
    size = archive.stat().st_size
    if output.as_json:
        output.document({"path": str(archive), "images": images, "size_bytes": size})
    else:
        output.line(f"{archive}: {images:,} faces, {size / 1e6:.1f} MB")


@click.command(hidden=True)
@click.option("--dataset", type=FILE, help="Train on this zip instead of a synthetic one.")
@click.option(
    "--images", type=click.IntRange(min=20), default=1200, show_default=True, help="Synthetic faces to generate."
)
@click.option("--epochs", type=click.IntRange(min=1), help="Passes over the faces; without it, as many as they need.")
@click.option("--once", is_flag=True, help="End when all is done instead of staying up.")
@click.pass_context
def demo(ctx: click.Context, dataset: Path | None, images: int, epochs: int | None, once: bool) -> None:
    """Run the main job from end to end; `make demo` calls it."""
    from shared.cli.demo import Demo  # noqa: PLC0415

    settings = settings_in_force()
    with private_files(settings):
        code = Demo(output_of(ctx), settings, dataset, images=images, epochs=epochs).run(stay=not once)
    ctx.exit(code)
