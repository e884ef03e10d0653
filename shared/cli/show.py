"""What the reading commands print: runs, models, jobs, dead letters and the state of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from shared.broker.base import Broker, DeadLetter
from shared.cli.annotate import tags_of
from shared.cli.output import Output, moment, percent
from shared.client import Client
from shared.errors import NotFound
from shared.measures.at_threshold import Measures
from shared.records.annotations import Annotation, has_tag, select_tagged, with_name
from shared.records.evaluation import Evaluation, Rate
from shared.records.jobs import Job
from shared.records.record import DamagedRecord, Listing, Record
from shared.records.registry import Aliases, Registry
from shared.records.runs import Run
from shared.telemetry.liveness import HeartbeatListener

_DAMAGED: Final = "damaged"
_NEWEST: Final = 50
"""Runs, jobs and models that `status` looks at."""
LISTEN_S: Final = 2.5
"""How long `status` listens: a running service reports every two seconds."""


# -- runs


def show_runs(output: Output, client: Client, tag: str | None = None) -> None:
    """Prints a line a run, of those that have a tag if one is given."""
    annotations, damaged = client.annotations.find_all("run")
    found = select_tagged(client.runs.all(), annotations, tag)
    if output.as_json:
        rows = [{**run.as_dict(), "annotation": _as_dict(annotations.get(run.run_id))} for run in found.records]
        output.document(rows + _damaged_entries(found, "run_id"))
        return
    if not found.records and not found.damaged:
        output.remark("no runs yet; make one with `genderline train ZIP`")
        return
    output.table(
        ["RUN", "STATE", "MODEL", "VALIDATION", "CREATED (UTC)", "NAME", "TAGS"],
        [
            (
                run.run_id,
                run.state,
                _version(run),
                percent((run.metrics or {}).get("val_accuracy")) or _progress(run),
                moment(run.created),
                run.name,
                tags_of(annotations, run.run_id),
            )
            for run in found.records
        ]
        + [(error.record_id, _DAMAGED, *[None] * 5) for error in found.damaged],
        right=[2, 3],
    )
    _name_damaged(output, damaged + found.damaged)


def show_run(output: Output, client: Client, record: Run) -> None:
    """Prints all about one run."""
    run_id = record.run_id
    annotation = client.annotations.find_all("run")[0].get(run_id)
    record = with_name(record, annotation)
    history = client.runs.history(run_id)
    evaluation = client.runs.evaluation(run_id)
    params = record.params.as_dict() if record.params else {}
    if output.as_json:
        rows = [row.as_dict() for row in history]
        told = {"history": rows, "evaluation": evaluation and evaluation.as_dict()}
        output.document({**record.as_dict(), "annotation": _as_dict(annotation), **told})
        return
    _facts(
        output,
        [
            ("run", run_id),
            ("name", record.name),
            *_annotated(annotation),
            ("state", record.state),
            ("progress", _progress(record)),
            ("model", _version(record)),
            ("created", moment(record.created)),
            ("updated", moment(record.updated)),
            ("dataset", record.dataset),
            ("edits", record.edits),
            ("params", ", ".join(f"{key}={value}" for key, value in params.items())),
            ("error", _error(record)),
        ],
    )
    if history:
        output.line()
        output.table(
            ["EPOCH", "TRAIN LOSS", "ACCURACY", "VAL LOSS", "ACCURACY", "IMAGES/S"],
            [
                (
                    f"{row.epoch}",
                    f"{row.train_loss:.4f}",
                    percent(row.train_accuracy),
                    f"{row.val_loss:.4f}",
                    percent(row.val_accuracy),
                    f"{row.images_per_second:,.0f}",
                )
                for row in history
            ],
            right=range(6),
        )
    if evaluation:
        output.line()
        _show_evaluation(output, evaluation)


def _show_evaluation(output: Output, found: Evaluation) -> None:
    auc = "" if found.auc is None else f", AUC {found.auc:.3f}"
    output.line(
        f"test faces: {found.count:,}, accuracy {percent(found.accuracy)} "
        f"({percent(found.accuracy_low)} to {percent(found.accuracy_high)}){auc}, calibration error {found.ece:.3f}"
    )
    output.table(
        ["GROUP", "KIND", "FACES", "ACCURACY", "95 % INTERVAL"],
        [
            (group.name, group.kind, group.count, percent(group.accuracy), f"{group.low:.3f} to {group.high:.3f}")
            for group in found.groups
            if group.kind != "intersection"
        ],
        right=[2, 3],
    )


# -- datasets


def show_datasets(output: Output, client: Client, tag: str | None = None) -> None:
    """Prints a line a dataset, those with the newest runs first; with a tag, of those that have it."""
    annotations, damaged = client.annotations.find_all("dataset")
    found = {
        sha256: facts
        for sha256, facts in _datasets(client).items()
        if tag is None or has_tag(annotations.get(sha256), tag)
    }
    if output.as_json:
        rows = [{**facts, "annotation": _as_dict(annotations.get(sha256))} for sha256, facts in found.items()]
        output.document(rows)
        return
    if not found:
        output.remark("no datasets yet; make one with `genderline train ZIP`")
        return
    lines: list[tuple[object, ...]] = []
    for sha256, facts in found.items():
        figures: tuple[str | None, ...] = (None, None, None)
        try:
            if summary := client.find_summary(sha256):
                counts = (summary.faces, summary.genders["male"], summary.genders["female"])
                figures = tuple(f"{count:,}" for count in counts)
        except DamagedRecord as error:
            figures = (_DAMAGED, None, None)
            damaged.append(error)
        lines.append((sha256[:12], *figures, len(facts["runs"]), facts["name"], tags_of(annotations, sha256)))
    output.table(["DATASET", "FACES", "MALE", "FEMALE", "RUNS", "NAME", "TAGS"], lines, right=[1, 2, 3, 4])
    _name_damaged(output, damaged)


def show_dataset(output: Output, client: Client, sha256: str) -> None:
    """Prints all about one dataset."""
    facts = _datasets(client).get(sha256)
    if facts is None:
        raise NotFound(f"there is no dataset {sha256!r}")
    annotation = client.annotations.find_all("dataset")[0].get(sha256)
    summary = client.find_summary(sha256)
    if output.as_json:
        told = summary.model_dump(mode="json") if summary else None
        output.document({**facts, "annotation": _as_dict(annotation), "summary": told})
        return
    _facts(
        output,
        [
            ("dataset", sha256),
            ("name", facts["name"]),
            *_annotated(annotation),
            ("faces", f"{summary.faces:,}" if summary else "not processed yet"),
            ("genders", summary and ", ".join(f"{count:,} {gender}" for gender, count in summary.genders.items())),
            ("rejected", summary and f"{summary.images_seen - summary.faces:,}"),
            ("runs", ", ".join(facts["runs"])),
        ],
    )


def _datasets(client: Client) -> dict[str, dict[str, Any]]:
    """Returns id, name and runs of every dataset by its id, those with the newest runs first."""
    annotations, _ = client.annotations.find_all("dataset")
    runs = select_tagged(client.runs.all(), client.annotations.find_all("run")[0]).records
    stored = client.store.children("datasets")
    ordered = dict.fromkeys([*(run.dataset for run in runs if run.dataset in stored), *stored])
    found: dict[str, dict[str, Any]] = {}
    for sha256 in filter(None, ordered):
        own = [run for run in runs if run.dataset == sha256]
        given = (annotation := annotations.get(sha256)) and annotation.name
        name = given or (own[0].name if own else None)
        found[sha256] = {"sha256": sha256, "name": name, "runs": [run.run_id for run in own]}
    return found


# -- models


def show_models(output: Output, client: Client, tag: str | None = None) -> None:
    """Prints a line a version, and which of them serve; with a tag, of those that have it."""
    registry = client.registry
    (aliases, damaged), figures, cards = registry.find_aliases(), client.shadow(), registry.cards()
    annotations, unknown = client.annotations.find_all("model")
    damaged += unknown
    refusals = registry.refusals(card.version for card in cards.records)
    if tag is not None:
        tagged = [card for card in cards.records if has_tag(annotations.get(str(card.version)), tag)]
        cards = Listing(tagged, cards.damaged, len(tagged))
    if output.as_json:
        output.document(
            {
                "name": "gender",
                "aliases": aliases.as_dict(),
                "shadow": figures.summary() if figures else None,
                "versions": [
                    {
                        **card.as_dict(),
                        "annotation": _as_dict(annotations.get(str(card.version))),
                        "refused": refusals.get(card.version),
                    }
                    for card in reversed(cards.records)
                ],
                "history": [] if damaged else [change.as_dict() for change in registry.history()],
                "damaged": _damaged_files(damaged + cards.damaged),
            }
        )
        return
    if not cards.records and not cards.damaged:
        output.remark("no models yet; train one with `genderline train ZIP`")
        return
    output.table(
        ["VERSION", "ALIAS", "VALIDATION", "TEST", "RUN", "CREATED (UTC)", "DATASET", "NAME", "TAGS"],
        [
            (
                card.version,
                " ".join(filter(None, [_alias(aliases, card.version), "refused" if card.version in refusals else ""])),
                percent(card.metrics.get("val_accuracy")),
                percent(card.metrics.get("test_accuracy")),
                card.run_id,
                moment(card.created),
                card.dataset.name,
                (found := annotations.get(str(card.version))) and found.name,
                tags_of(annotations, str(card.version)),
            )
            for card in reversed(cards.records)
        ]
        + [(error.record_id, _DAMAGED, *[None] * 7) for error in cards.damaged],
        right=[0, 2, 3],
    )
    _name_damaged(output, damaged + cards.damaged)
    for version, reason in refusals.items():
        output.line()
        output.line(f"workers refuse version {version}: {reason}")
    if figures:
        output.line()
        output.line(f"version {aliases.challenger} challenges version {aliases.champion}: it {figures.sentence()}")


def show_model(output: Output, client: Client, version: int) -> None:
    """Prints a version's card."""
    card = client.registry.card(version)
    annotation = client.annotations.find_all("model")[0].get(str(version))
    refused = client.registry.refusals([version]).get(version)
    if output.as_json:
        output.document({**card.as_dict(), "annotation": _as_dict(annotation), "refused": refused})
    else:
        _facts(output, [("name", annotation and annotation.name), *_annotated(annotation), ("refused", refused)])
        output.markdown(client.store.get(Registry.card_text_key(version)).decode())


def show_measures(output: Output, found: Measures) -> None:
    """Prints how well a model predicts some faces at a decision threshold."""
    if output.as_json:
        output.document(found.as_dict())
        return

    def interval(rate: Rate | None) -> str | None:
        return f"{percent(rate.share)} ({percent(rate.low)} to {percent(rate.high)})" if rate else None

    worst = found.worst_group
    _facts(
        output,
        [
            ("threshold", found.threshold),
            ("faces", f"{found.accuracy.total:,}"),
            ("accuracy", interval(found.accuracy)),
            ("balanced", percent(found.balanced_accuracy)),
            ("male", interval(found.recall_male)),
            ("female", interval(found.recall_female)),
            ("worst", worst and f"{worst.name}, {interval(worst.accuracy)}"),
            ("best at", found.best_accuracy_threshold),
            ("equal at", found.equal_error_threshold),
        ],
    )
    output.line()
    output.table(
        ["GROUP", "KIND", "FACES", "ACCURACY", "FALSE POSITIVES", "FALSE NEGATIVES"],
        [
            (
                group.name,
                group.kind,
                group.accuracy.total,
                percent(group.accuracy.share),
                interval(group.false_positive_rate),
                interval(group.false_negative_rate),
            )
            for group in found.groups
        ],
        right=[2, 3],
    )


# -- jobs


def show_jobs(output: Output, client: Client, tag: str | None = None) -> None:
    """Prints a line a job, of those that have a tag if one is given."""
    annotations, damaged = client.annotations.find_all("job")
    found = select_tagged(client.jobs.all(), annotations, tag)
    if output.as_json:
        rows = [{**job.as_dict(), "annotation": _as_dict(annotations.get(job.job_id))} for job in found.records]
        output.document(rows + _damaged_entries(found, "job_id"))
        return
    if not found.records and not found.damaged:
        output.remark("no jobs yet; make one with `genderline predict ARCHIVE.zip`")
        return
    output.table(
        ["JOB", "STATE", "DONE", "IMAGES", "ERRORS", "ACCURACY", "MODEL", "CREATED (UTC)", "NAME", "TAGS"],
        [
            (
                job.job_id,
                job.state,
                f"{client.jobs.progress(job).done:,}",
                None if job.images is None else f"{job.images:,}",
                job.counts and job.counts.errors,
                percent(job.accuracy),
                _version(job),
                moment(job.created),
                job.name,
                tags_of(annotations, job.job_id),
            )
            for job in found.records
        ]
        + [(error.record_id, _DAMAGED, *[None] * 8) for error in found.damaged],
        right=[2, 3, 4, 5, 6],
    )
    _name_damaged(output, damaged + found.damaged)


def show_job(output: Output, client: Client, record: Job) -> None:
    """Prints all about one job."""
    progress = client.jobs.progress(record)
    annotation = client.annotations.find_all("job")[0].get(record.job_id)
    record = with_name(record, annotation)
    if output.as_json:
        output.document({**record.as_dict(), "annotation": _as_dict(annotation), "done": progress.done})
        return
    _facts(
        output,
        [
            ("job", record.job_id),
            ("name", record.name),
            *_annotated(annotation),
            ("state", record.state),
            ("images", f"{progress.done:,} of {progress.total:,}"),
            ("errors", record.counts and record.counts.errors),
            ("accuracy", percent(record.accuracy)),
            ("model", _version(record)),
            ("created", moment(record.created)),
            ("updated", moment(record.updated)),
            ("results", record.results),
            ("error", _error(record)),
        ],
    )


# -- dead letters


def show_dead(output: Output, broker: Broker, letters: list[DeadLetter]) -> None:
    """Prints a line a dead letter, oldest first."""
    if output.as_json:
        output.document([letter.summary() for letter in letters])
        return
    if not letters:
        output.remark("no failed messages")
        return
    output.table(
        ["ID", "REASON", "FROM", "DELIVERIES", "BYTES", "TYPE", "MESSAGE"],
        [
            (
                letter.dead_id,
                letter.reason,
                broker.topology.short(letter.origin),
                letter.delivery_count,
                f"{len(letter.message.body):,}",
                letter.message.content_type,
                letter.message.message_id,
            )
            for letter in letters
        ],
        right=[3, 4],
    )


# -- the whole


def show_status(output: Output, client: Client) -> None:
    """Listens for a moment, then prints the services, the queues, the model in use and the training runs."""
    broker = client.broker
    with HeartbeatListener(broker) as heartbeats:
        heartbeats.wait_until(lambda _: False, LISTEN_S)  # nobody knows how many there are
        workers = heartbeats.workers()
    depths = broker.depths()
    aliases, damaged = client.registry.find_aliases()
    champion = aliases.champion
    found = client.runs.open()
    running = found.records
    for listing in (found, client.runs.page(_NEWEST), client.jobs.page(_NEWEST), client.registry.page(_NEWEST)):
        damaged += [damage for damage in listing.damaged if damage.key not in {known.key for known in damaged}]
    if output.as_json:
        output.document(
            {
                "services": workers,
                "queues": {
                    broker.topology.short(queue): {"ready": depth.ready, "unacknowledged": depth.unacknowledged}
                    for queue, depth in depths.items()
                },
                "champion": champion,
                "runs": [run.as_dict() for run in running],
                "damaged": _damaged_files(damaged),
            }
        )
        return
    if workers:
        output.table(
            ["SERVICE", "PROCESS", "MODEL", "DEVICE", "IMAGES/S", "P99 MS", "BUSY WITH"],
            [
                (
                    worker["service"],
                    worker["worker"],
                    worker.get("version"),
                    ", ".join(dict.fromkeys(filter(None, (worker.get("provider"), worker.get("device"))))) or None,
                    _number(worker.get("images_per_second")),
                    _number(worker.get("latency_p99_ms")),
                    worker.get("busy"),
                )
                for worker in workers
            ],
            right=[2, 4, 5],
        )
        for worker in workers:
            if worker.get("store_trouble"):
                output.error(f"{worker['service']} {worker['worker']} cannot use the store: {worker['store_trouble']}")
    else:
        output.line("no service is running; start them with `genderline up`")
    for trouble in dict.fromkeys(worker.get("broker_trouble") for worker in workers):
        if trouble:
            output.error(str(trouble))
    output.line()
    output.table(
        ["QUEUE", "WAITING", "IN PROGRESS"],
        [(broker.topology.short(queue), depth.ready, depth.unacknowledged) for queue, depth in depths.items()],
        right=[1, 2],
    )
    output.line()
    output.line("no model is in use yet" if champion is None else f"champion: version {champion}")
    for run in running:
        output.line(f"{run.run_id} ({run.name}): {_progress(run)}")
    _name_damaged(output, damaged)


# -- pieces


def _facts(output: Output, facts: list[tuple[str, object]]) -> None:
    """Prints names and values, those that have one."""
    for name, value in facts:
        if value not in {None, ""}:
            output.line(f"{name:<10}{value}")


def _as_dict(annotation: Annotation | None) -> dict[str, Any] | None:
    return None if annotation is None else annotation.as_dict()


def _annotated(annotation: Annotation | None) -> list[tuple[str, object]]:
    """Returns tags and note for `_facts`."""
    return [("tags", ", ".join(annotation.tags)), ("note", annotation.note)] if annotation else []


def _damaged_entries(found: Listing[Any], key: str) -> list[dict[str, Any]]:
    """Returns what a list in JSON says of damaged records."""
    return [{key: error.record_id, "state": _DAMAGED, "error": error.as_dict()} for error in found.damaged]


def _damaged_files(damaged: Sequence[DamagedRecord]) -> list[dict[str, Any]]:
    return [{"file": error.key, "error": error.as_dict()} for error in damaged]


def _name_damaged(output: Output, damaged: Sequence[DamagedRecord]) -> None:
    for error in damaged:
        output.error(str(error))


def _version(record: Record) -> int | None:
    return record.model.version if record.model else None


def _error(record: Record) -> str | None:
    return f"{record.error.code}: {record.error.message}" if record.error else None


def _progress(run: Run) -> str | None:
    """Returns how far a run is, such as `training, epoch 3/20, 41 %`; None once it has ended."""
    if run.state.is_final:
        return None
    progress = run.progress
    if progress is None:
        return run.state
    parts = [str(progress.stage)]
    if progress.epoch:
        parts.append(f"epoch {progress.epoch}/{progress.epochs}")
    if progress.total:
        parts.append(f"{progress.done / progress.total:.0%}")
    return ", ".join(parts)


def _alias(aliases: Aliases, version: int) -> str | None:
    names = {aliases.previous: "previous", aliases.challenger: "challenger", aliases.champion: "champion"}
    return names.get(version)


def _number(value: object) -> str | None:
    return f"{value:,.1f}" if isinstance(value, int | float) else None
