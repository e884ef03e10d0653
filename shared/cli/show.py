"""What the reading commands print: runs, models, jobs, dead letters and the state of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from shared.broker.base import Broker, DeadLetter
from shared.cli.output import Output, moment, percent
from shared.client import Client
from shared.records.evaluation import Evaluation
from shared.records.registry import Aliases, Registry
from shared.records.runs import FINAL_STATES
from shared.telemetry.liveness import HeartbeatListener

LISTEN_S: Final = 2.5
"""How long `status` listens: a service that is up beats every two seconds."""

Record = Mapping[str, Any]


# -- runs


def show_runs(output: Output, records: list[dict[str, Any]]) -> None:
    """Prints a line a run."""
    if output.as_json:
        output.document(records)
        return
    if not records:
        output.remark("no runs yet; make one with `genderline train ZIP`")
        return
    output.table(
        ["RUN", "STATE", "MODEL", "VALIDATION", "CREATED (UTC)", "NAME"],
        [
            (
                record["run_id"],
                record["state"],
                _version(record),
                percent((record["metrics"] or {}).get("val_accuracy")) or _progress(record),
                moment(record["created"]),
                record["name"],
            )
            for record in records
        ],
        right=[2, 3],
    )


def show_run(output: Output, client: Client, record: dict[str, Any]) -> None:
    """Prints all about one run."""
    run_id = record["run_id"]
    history = client.runs.history(run_id)
    evaluation = client.runs.evaluation(run_id)
    if output.as_json:
        output.document({**record, "history": history, "evaluation": evaluation})
        return
    _facts(
        output,
        [
            ("run", run_id),
            ("name", record["name"]),
            ("state", record["state"]),
            ("progress", None if record["state"] in FINAL_STATES else _progress(record)),
            ("model", _version(record)),
            ("created", moment(record["created"])),
            ("updated", moment(record["updated"])),
            ("dataset", record["dataset"]),
            ("params", ", ".join(f"{key}={value}" for key, value in (record["params"] or {}).items())),
            ("error", _error(record)),
        ],
    )
    if history:
        output.line()
        output.table(
            ["EPOCH", "TRAIN LOSS", "ACCURACY", "VAL LOSS", "ACCURACY", "IMAGES/S"],
            [
                (
                    f"{row['epoch']:.0f}",
                    f"{row['train_loss']:.4f}",
                    percent(row["train_accuracy"]),
                    f"{row['val_loss']:.4f}",
                    percent(row["val_accuracy"]),
                    f"{row['images_per_second']:,.0f}",
                )
                for row in history
            ],
            right=range(6),
        )
    if evaluation:
        output.line()
        _show_evaluation(output, Evaluation.model_validate(evaluation))


def _show_evaluation(output: Output, found: Evaluation) -> None:
    auc = "" if found.auc is None else f", AUC {found.auc:.3f}"
    output.line(
        f"held-out faces: {found.count:,}, accuracy {percent(found.accuracy)} "
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


# -- models


def show_models(output: Output, client: Client) -> None:
    """Prints a line a version, and which of them serve."""
    registry = client.registry
    aliases, figures = registry.aliases(), client.shadow()
    cards = [registry.card(version) for version in registry.versions()]
    if output.as_json:
        known = {"champion": aliases.champion, "previous": aliases.previous, "challenger": aliases.challenger}
        output.document(
            {
                "name": "gender",
                "aliases": known,
                "shadow": figures.summary() if figures else None,
                "versions": cards,
                "history": registry.history(),
            }
        )
        return
    if not cards:
        output.remark("no models yet; train one with `genderline train ZIP`")
        return
    output.table(
        ["VERSION", "ALIAS", "VALIDATION", "TEST", "RUN", "CREATED (UTC)", "DATASET"],
        [
            (
                card["version"],
                _alias(aliases, card["version"]),
                percent(card["metrics"].get("val_accuracy")),
                percent(card["metrics"].get("test_accuracy")),
                card["run_id"],
                moment(card["created"]),
                card["dataset"]["name"],
            )
            for card in cards
        ],
        right=[0, 2, 3],
    )
    if figures:
        output.line()
        output.line(f"version {aliases.challenger} challenges version {aliases.champion}: it {figures.sentence()}")


def show_model(output: Output, client: Client, version: int) -> None:
    """Prints a version's card."""
    card = client.registry.card(version)
    if output.as_json:
        output.document(card)
    else:
        output.markdown(client.store.get(Registry.card_text_key(version)).decode())


# -- jobs


def show_jobs(output: Output, client: Client, records: list[dict[str, Any]]) -> None:
    """Prints a line a job."""
    if output.as_json:
        output.document(records)
        return
    if not records:
        output.remark("no jobs yet; make one with `genderline predict ARCHIVE.zip`")
        return
    output.table(
        ["JOB", "STATE", "DONE", "IMAGES", "ERRORS", "ACCURACY", "MODEL", "CREATED (UTC)", "NAME"],
        [
            (
                record["job_id"],
                record["state"],
                f"{client.jobs.progress(record)[0]:,}",
                None if record["images"] is None else f"{record['images']:,}",
                (record["counts"] or {}).get("errors"),
                percent(record["accuracy"]),
                _version(record),
                moment(record["created"]),
                record["name"],
            )
            for record in records
        ],
        right=[2, 3, 4, 5, 6],
    )


def show_job(output: Output, client: Client, record: dict[str, Any]) -> None:
    """Prints all about one job."""
    done, images = client.jobs.progress(record)
    if output.as_json:
        output.document({**record, "done": done})
        return
    counts = record["counts"] or {}
    _facts(
        output,
        [
            ("job", record["job_id"]),
            ("name", record["name"]),
            ("state", record["state"]),
            ("images", f"{done:,} of {images:,}"),
            ("errors", counts.get("errors")),
            ("accuracy", percent(record["accuracy"])),
            ("model", _version(record)),
            ("created", moment(record["created"])),
            ("updated", moment(record["updated"])),
            ("results", record["results"]),
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
        output.remark("no dead letters")
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
    """Listens for a moment, then prints who is up, what waits, what serves and what is being trained."""
    broker = client.broker
    with HeartbeatListener(broker) as heartbeats:
        heartbeats.wait_for({"a service that no one is"}, LISTEN_S)
        workers = heartbeats.workers()
    depths = broker.depths()
    champion = client.registry.aliases().champion
    running = [record for record in client.runs.all() if record["state"] not in FINAL_STATES]
    if output.as_json:
        output.document(
            {
                "services": workers,
                "queues": {
                    broker.topology.short(queue): {"ready": depth.ready, "unacknowledged": depth.unacknowledged}
                    for queue, depth in depths.items()
                },
                "champion": champion,
                "runs": running,
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
    else:
        output.line("no service is up; start them with `genderline up`")
    output.line()
    output.table(
        ["QUEUE", "WAITING", "IN WORK"],
        [(broker.topology.short(queue), depth.ready, depth.unacknowledged) for queue, depth in depths.items()],
        right=[1, 2],
    )
    output.line()
    output.line("no model serves yet" if champion is None else f"champion: version {champion}")
    for record in running:
        output.line(f"{record['run_id']} ({record['name']}): {_progress(record)}")


# -- pieces


def _facts(output: Output, facts: list[tuple[str, object]]) -> None:
    """Prints names and values, those that have one."""
    for name, value in facts:
        if value not in {None, ""}:
            output.line(f"{name:<10}{value}")


def _version(record: Record) -> int | None:
    return record["model"]["version"] if record["model"] else None


def _error(record: Record) -> str | None:
    return "{code}: {message}".format(**record["error"]) if record["error"] else None


def _progress(record: Record) -> str | None:
    """Returns how far a run is, such as `training, epoch 3/20, 41 %`; None once it has ended."""
    if record["state"] in FINAL_STATES:
        return None
    progress = record["progress"] or {}
    parts = [str(progress.get("stage") or record["state"])]
    if progress.get("epoch"):
        parts.append(f"epoch {progress['epoch']}/{progress['epochs']}")
    if progress.get("total"):
        parts.append(f"{progress['done'] / progress['total']:.0%}")
    return ", ".join(parts)


def _alias(aliases: Aliases, version: int) -> str | None:
    names = {aliases.previous: "previous", aliases.challenger: "challenger", aliases.champion: "champion"}
    return names.get(version)


def _number(value: object) -> str | None:
    return f"{value:,.1f}" if isinstance(value, int | float) else None
