"""The command that compares two models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from shared.cli.base import connected, json_option, output_of

if TYPE_CHECKING:
    from shared.cli.output import Output
    from shared.client import Client
    from shared.measures.comparison import Comparison, Gain
    from shared.measures.labels import LabelledFaces

_NAMES: Final = 10
"""Faces that are named of those that turned right, and wrong."""


@click.command()
@click.argument("first", type=click.IntRange(min=1), required=False)
@click.argument("second", type=click.IntRange(min=1), required=False)
@click.option("--dataset", metavar="SHA256", help="On these faces; by default those that SECOND was trained with.")
@click.option("--split", type=click.Choice(["test", "validation", "train", "all"]), default="test", show_default=True)
@click.option("--threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True, help="Female from here on.")
@click.option(
    "--labels", default="", help="`archive`, or the hash of a run's edits; by default the labels in force now."
)
@click.option("--predict", is_flag=True, help="Let a model that has not predicted the dataset do so first.")
@json_option
@click.pass_context
def compare(
    ctx: click.Context,
    first: int | None,
    second: int | None,
    dataset: str | None,
    split: str,
    threshold: float,
    labels: str,
    predict: bool,
) -> None:
    """Compare two models on the same faces, or list all models on all datasets.

    McNemar's exact test says whether chance explains the difference.
    """
    from shared.records.model_card import caution_of_strangers  # noqa: PLC0415

    output = output_of(ctx)
    if (first is None) != (second is None):
        raise click.UsageError("give two versions, or none for all models on all datasets")
    with connected() as client:
        if first is None or second is None:
            _show_matrix(output, client)
            return
        sha256 = client.resolve_dataset(dataset) if dataset else client.common_dataset(first, second)
        if predict:
            _predict_missing(output, client, sha256, (first, second))
        found, faces = client.compare(first, second, dataset=sha256, split=split, threshold=threshold, labels=labels)
        caution = caution_of_strangers(map(client.registry.card, (first, second)), sha256)
    if output.as_json:
        asked = {"dataset": sha256, "split": split, "threshold": threshold, "labels": labels}
        sentence = found.describe(first, second)
        document = {"versions": [first, second], **asked, "sentence": sentence, "caution": caution, **found.as_dict()}
        output.document(document)
        return
    _show(output, found, faces, first, second)
    if caution:
        output.remark(caution, "yellow")


def _predict_missing(output: Output, client: Client, sha256: str, versions: tuple[int, int]) -> None:
    from shared.errors import NotFound  # noqa: PLC0415
    from shared.measures.labels import read_labelled_faces  # noqa: PLC0415
    from shared.records.dataset import ARCHIVE_LABELS  # noqa: PLC0415
    from shared.records.predictions import read_predictions  # noqa: PLC0415

    faces = len(read_labelled_faces(client.store, sha256, ARCHIVE_LABELS).names)
    for version in versions:
        try:
            read_predictions(client.store, sha256, client.registry.card(version), faces)
        except NotFound:
            with output.steps() as steps:
                client.score_dataset(
                    sha256,
                    version,
                    lambda progress: steps.step("predicting", progress.done, progress.total, rate=progress.rate),
                )


def _show(output: Output, found: Comparison, faces: LabelledFaces, first: int, second: int) -> None:
    from shared.cli.output import percent  # noqa: PLC0415

    cells = found.agreement
    output.line(found.describe(first, second))
    output.line(
        f"difference {_points(found.gain)}; balanced accuracy {percent(found.first_balanced)} and "
        f"{percent(found.second_balanced)}"
    )
    output.line()
    output.table(
        ["", f"MODEL {second} CORRECT", f"MODEL {second} WRONG"],
        [
            (f"model {first} correct", f"{cells.both_correct:,}", f"{cells.only_first:,}"),
            (f"model {first} wrong", f"{cells.only_second:,}", f"{cells.both_wrong:,}"),
        ],
        right=[1, 2],
    )
    output.line()
    output.table(
        ["GROUP", "KIND", "FACES", f"MODEL {first}", f"MODEL {second}", "GAIN IN POINTS (95 % INTERVAL)"],
        [
            (
                row.name,
                row.kind,
                row.first.total,
                percent(row.first.share),
                percent(row.second.share),
                _points(row.gain),
            )
            for row in found.groups
        ],
        right=[2, 3, 4],
    )
    for words, indices in (("turned right", found.turned_correct), ("turned wrong", found.turned_wrong)):
        output.line()
        output.line(f"{words}: {len(indices):,}")
        for index in indices[:_NAMES]:
            output.line(f"  {faces.names[index]}")
        if len(indices) > _NAMES:
            output.line(f"  and {len(indices) - _NAMES:,} more; --json has all of them")


def _show_matrix(output: Output, client: Client) -> None:
    from shared.cli.output import percent  # noqa: PLC0415

    cells = client.accuracy_matrix()
    if output.as_json:
        output.document([cell.as_dict() for cell in cells])
        return
    if not cells:
        output.remark("no models yet; train one with `genderline train ZIP`")
        return
    datasets = list(dict.fromkeys(cell.dataset for cell in cells))
    output.table(
        ["MODEL", *(sha256[:12] for sha256 in datasets)],
        [
            (
                version,
                *(percent(cell.accuracy.share) if cell.accuracy else None for cell in cells if cell.version == version),
            )
            for version in dict.fromkeys(cell.version for cell in cells)
        ],
        right=range(len(datasets) + 1),
    )


def _points(gain: Gain) -> str:
    return f"{100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
