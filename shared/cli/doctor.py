"""Checks an installation: what works, what does not, and what to do about it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from shared.broker.base import AccessRefused, Broker, Message, Outgoing
from shared.broker.sqlite.file_system import ADVICE, require_own_disk
from shared.cli.reference_tables import without_password
from shared.connect import open_broker_for, open_store_for
from shared.errors import GenderlineError
from shared.runtime.resources import available_cores, memory_limit_bytes
from shared.runtime.settings import Settings, SettingsError
from shared.telemetry.liveness import HeartbeatListener

State = Literal["ok", "warning", "problem"]

_FREE_BYTES: Final = 2 * 2**30
_CLOCK_S: Final = 2.0
_LISTEN_S: Final = 2.5
_ANSWER_S: Final = 5.0
_HAS_CUDA: Final = "import torch; print(torch.cuda.is_available())"
_PROVIDERS: Final = "import onnxruntime; print(*onnxruntime.get_available_providers())"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was looked at.
        state: whether it is well.
        found: what is there, in a sentence.
        advice: what to do; empty where it is well.
    """

    check: str
    state: State
    found: str
    advice: str = ""


class _NotLoaded(Exception):
    """A library is installed, and cannot be loaded."""


def examine(settings: Settings) -> Iterator[Finding]:
    """Yields what is found, check by check. A check that fails ends no other."""
    yield _versions()
    yield from _guarded("memory and cores", _resources, settings)
    yield from _guarded("provider", _provider, settings)
    yield from _guarded("device", _device, settings)
    yield from _guarded("folders", _folders, settings)
    yield from _guarded("temporary files", _temporary_files, settings)
    if settings.broker_url.startswith("sqlite:"):
        yield from _guarded("file system of the broker", _broker_file_system, settings)
    yield from _guarded("store", _store, settings)
    yield from _guarded("broker", _broker, settings)


def _guarded(check: str, work: Callable[[Settings], Iterator[Finding]], settings: Settings) -> Iterator[Finding]:
    try:
        yield from work(settings)
    except _NotLoaded as error:
        yield Finding(check, "problem", str(error), "install it anew")
    except (GenderlineError, SettingsError) as error:
        yield Finding(check, "problem", str(error), "correct the setting, or start the server that it names")
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        yield Finding(check, "problem", f"{place}{error.strerror or error}", "give this user the right to write there")
    except sqlite3.Error as error:
        yield Finding(check, "problem", f"SQLite: {error}", "make room, or give this user the right to write there")


def _versions() -> Finding:
    installed = {name: version for name in ("onnxruntime", "onnxruntime-gpu", "torch") if (version := _version(name))}
    found = ", ".join([f"Genderline {_version('genderline')}", f"Python {platform.python_version()}"])
    found += "".join(f", {name} {version}" for name, version in installed.items())
    if {"onnxruntime", "onnxruntime-gpu"} <= installed.keys():
        return Finding("versions", "problem", found, "the two builds of ONNX Runtime exclude each other: uninstall one")
    return Finding("versions", "ok", found)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _resources(_settings: Settings) -> Iterator[Finding]:
    limit = memory_limit_bytes()
    found = f"{available_cores()} of {os.cpu_count()} cores"
    yield Finding("memory and cores", "ok", found + (f", {limit / 2**30:.1f} GiB at most" if limit else ""))


def _ask(library: str, script: str) -> str:
    """Returns what a library says, in a process of its own: `shared` does not import it.

    Raises:
        _NotLoaded: it cannot be loaded.
    """
    done = subprocess.run(  # noqa: S603 - our own command
        [sys.executable, "-c", script],
        env={**os.environ, "ORT_DISABLE_TELEMETRY": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise _NotLoaded(f"{library} cannot be loaded: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
    return done.stdout.strip()


def _provider(settings: Settings) -> Iterator[Finding]:
    if not (_version("onnxruntime") or _version("onnxruntime-gpu")):
        return  # nothing here serves models
    found = _ask("ONNX Runtime", _PROVIDERS)
    if settings.provider == "cuda" and "CUDAExecutionProvider" not in found:
        advice = "install the extra `inference-gpu` and the driver, or set GENDERLINE_PROVIDER=auto"
        yield Finding("provider", "problem", f"GENDERLINE_PROVIDER is cuda; this ONNX Runtime has {found}", advice)
    else:
        yield Finding("provider", "ok", found)


def _device(settings: Settings) -> Iterator[Finding]:
    if settings.device != "cuda" or not _version("torch"):
        return
    if _ask("PyTorch", _HAS_CUDA) == "True":
        yield Finding("device", "ok", "PyTorch finds a CUDA device")
    else:
        found = f"GENDERLINE_DEVICE is cuda; torch {_version('torch')} finds no CUDA device"
        yield Finding("device", "problem", found, "install the driver and PyTorch with CUDA, or set it to auto")


def _folders(settings: Settings) -> Iterator[Finding]:
    """Looks at the folders of a trainer, where one is installed."""
    if not _version("torch"):
        return
    settings.inbox.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=settings.inbox):
        yield Finding("watched folder", "ok", f"{settings.inbox} can be written to")
    for root in settings.allowed_roots:
        if not root.is_dir():
            found = f"{root} of GENDERLINE_ALLOWED_ROOTS is no folder"
            yield Finding("allowed roots", "warning", found, "make or mount it, or take it out of the setting")


def _temporary_files(_settings: Settings) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="genderline-") as folder:
        yield _room("temporary files", Path(folder).parent, "set TMPDIR to a folder on a larger disk")


def _room(check: str, folder: Path, advice: str) -> Finding:
    free = shutil.disk_usage(folder).free
    found = f"{folder} has {free / 2**30:.1f} GiB free"
    return Finding(check, "ok", found) if free >= _FREE_BYTES else Finding(check, "warning", found, advice)


def _broker_file_system(settings: Settings) -> Iterator[Finding]:
    path = Path(settings.broker_url.removeprefix("sqlite:///")).absolute()
    folder = next(parent for parent in path.parents if parent.is_dir())
    require_own_disk(folder)
    with (
        tempfile.TemporaryDirectory(prefix=".genderline-doctor-", dir=folder) as probe,
        contextlib.closing(sqlite3.connect(Path(probe) / "probe.db")) as connection,
    ):
        (mode,) = connection.execute("PRAGMA journal_mode = wal").fetchone()
    if mode != "wal":
        yield Finding("file system of the broker", "problem", f"{folder} allows no write-ahead log", ADVICE)
    else:
        yield _room("file system of the broker", folder, "make room; a full disk stops the embedded broker")


def _store(settings: Settings) -> Iterator[Finding]:
    with contextlib.ExitStack() as stack:  # the embedded broker knows which store is theirs
        broker = stack.enter_context(open_broker_for(settings)) if settings.broker_url.startswith("sqlite:") else None
        store = open_store_for(settings, broker)  # which tries conditional writes, and looks at the format
    key, started = f"probes/{uuid.uuid4().hex}", time.time()
    store.put(key, b"probe")
    try:
        intact = store.get(key) == b"probe" and not store.create(key, b"another")
        with store.local(key) as file:
            late_s = file.stat().st_mtime - started
    finally:
        store.delete(key)
    if not intact:
        yield Finding("store", "problem", f"{settings.store_url} loses or overwrites objects", "use another store")
        return
    yield Finding("store", "ok", f"{settings.store_url} can be read, written and deleted from")
    if not settings.store_url.startswith("file:"):
        return
    if abs(late_s) > _CLOCK_S:
        found = f"the store's clock is {abs(late_s):.0f} s {'ahead of' if late_s > 0 else 'behind'} this machine's"
        yield Finding("clock", "problem", found, "run an NTP client on both: what is stored says when")
    else:
        yield Finding("clock", "ok", "this machine and the store agree")
    folder = Path(settings.store_url.removeprefix("file:")).absolute()
    yield _room("room in the store", folder, "make room; `genderline delete` removes datasets, runs, models and jobs")


def _broker(settings: Settings) -> Iterator[Finding]:
    with open_broker_for(settings) as broker:
        yield from _permitted("broker", lambda: _round_trip(broker, without_password(settings.broker_url)))
        yield from _permitted("failed messages", lambda: _failed_messages(broker))
        yield from _permitted("events and services", lambda: _services(broker))


def _permitted(check: str, work: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yields what a check finds; a permission that the broker's user lacks may be as it should be."""
    try:
        yield from work()
    except AccessRefused as error:
        advice = "right for a trainer, for inference and for clients; the dashboard and this command line need it"
        yield Finding(check, "warning", str(error), advice)


def _round_trip(broker: Broker, shown: str) -> Iterator[Finding]:
    with broker.reply_queue() as replies:
        started = time.monotonic()
        broker.publish_many([Outgoing(replies.name, Message(b"probe", "text/plain"))])
        answered = bool(replies.receive(_ANSWER_S))
        took_ms = (time.monotonic() - started) * 1000
    if answered:
        yield Finding("broker", "ok", f"{shown} confirmed and delivered a message in {took_ms:.0f} ms")
    else:
        found = f"{shown} confirmed a message and did not deliver it within {_ANSWER_S:g} s"
        yield Finding("broker", "problem", found, "look at the broker's log and at its alarms")


def _failed_messages(broker: Broker) -> Iterator[Finding]:
    if dead := broker.depths()[broker.topology.dead].ready:
        found = f"{dead:,} waiting"
        yield Finding("failed messages", "warning", found, "`genderline dead` lists them; retry or drop them there")


def _services(broker: Broker) -> Iterator[Finding]:
    with HeartbeatListener(broker) as heartbeats:
        heartbeats.wait_for({"trainer", "inference", "dashboard"}, _LISTEN_S)
        running = sorted({str(beat["service"]) for beat in heartbeats.workers()})
    if running:
        yield Finding("services", "ok", f"{', '.join(running)} running")
        return
    advice = "start them: `genderline up` on one machine, each as docs/production.md says on several"
    yield Finding("services", "warning", "no service is running", advice)
