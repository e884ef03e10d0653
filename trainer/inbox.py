"""The watched folder: an archive that lands there is submitted as a dataset and moved aside."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from shared.archives.archive import SUFFIXES, ArchiveLimits, archive_stem, check_archive
from shared.archives.fetch import open_below
from shared.archives.tar import GZIP_SIGNATURE, gunzip, has_end, is_tar, read_tar
from shared.client import Client
from shared.clock import iso
from shared.errors import GenderlineError, InvalidDataset
from shared.messages import run_id_of
from shared.store.staging import StagedFile

_LOG = logging.getLogger(__name__)

LOOK_S: Final = 1.0
QUIET_S: Final = 60.0
"""Seconds without a change after which a file that cannot be read, or has no certain end, is submitted all the same."""
SUBMITTED: Final = "submitted"
"""The folder, inside the watched one, for what was submitted."""

_Signature = tuple[int, int, int]
"""A file's size, time of change in ns, and inode."""


class InboxWatcher:
    """Looks into a folder each second and submits every archive that is there whole.

    A file counts as whole when its size and time of change are the same in two looks and it can be read to its end: a
    copy may pause. One that cannot be read is submitted all the same once it has been quiet for long, so that its run
    says what is wrong with it; so is a tar without a marked end. Its message's id is derived from the file itself, so
    that a crash between submitting and moving it, or a second watcher, cannot train it twice.

    Args:
        client: who submits.
        folder: the watched folder; it is made.
        limits: an archive that breaks them is whole, and rejected by the trainer.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        client: Client,
        folder: Path,
        limits: ArchiveLimits,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._folder = folder
        self._limits = limits
        self._clock = clock
        self._seen: dict[str, tuple[_Signature, float]] = {}  # and since when
        self._cut_short: dict[str, _Signature] = {}  # looked at once, for a large tar.gz takes a while
        self._said: dict[str, str] = {}

    def run(self, stop: threading.Event) -> None:
        """Watches until `stop`."""
        while True:
            self.look()
            if stop.wait(LOOK_S):
                return

    def look(self) -> None:
        """Submits what is whole by now. Trouble is logged, once each, and met again at the next look."""
        try:
            (self._folder / SUBMITTED).mkdir(parents=True, exist_ok=True)
            found = self._archives()
        except OSError as error:
            self._say_once(self._folder.name, f"cannot watch {self._folder}: {error.strerror}")
            return
        self._said = {name: said for name, said in self._said.items() if name in found}
        self._cut_short = {name: signature for name, signature in self._cut_short.items() if name in found}
        now = self._clock()
        before, self._seen = self._seen, {}
        for name, signature in found.items():
            last, since = before.get(name, (None, now))
            self._seen[name] = (signature, since if last == signature else now)
            if last == signature:
                self._submit(name, signature, broken=now - since >= QUIET_S)

    def _archives(self) -> dict[str, _Signature]:
        """Returns the signature of every archive; links, which may lead anywhere, are left alone."""
        found = {}
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found[entry.name] = _signature(status)
        return found

    def _submit(self, name: str, signature: _Signature, *, broken: bool) -> None:
        """Submits an archive that has not changed; only if it can be read, unless it counts as `broken` if it cannot.

        The file is opened once, without following links: what was looked at is what is submitted, whatever takes its
        name in the meantime. That is another archive, and stays for the next looks; so does one that is written to.
        """
        path = self._folder / name
        try:
            with open_below(self._folder, Path(name)) as file:
                status = os.fstat(file.fileno())
                if _signature(status) != signature:
                    return
                if not broken and (self._cut_short.get(name) == signature or not self._is_whole(file)):
                    self._cut_short[name] = signature
                    return
                message_id = self._message_id(name, status)
                run_id = run_id_of(message_id)
                run = self._client.runs.find(run_id)
                has_ended = run is not None and run.state.is_final
                if not has_ended and not self._copy_in(file, signature, archive_stem(name), message_id):
                    return
            if _signature(path.stat(follow_symlinks=False)) == signature:
                target = self._folder / SUBMITTED / name
                if target.exists():
                    target = target.with_name(f"{path.stem}.{run_id}{path.suffix}")
                path.rename(target)
        except FileNotFoundError:
            return  # another watcher was quicker, or its owner took it away again
        except OSError as error:
            self._say_once(name, f"{path} cannot be submitted: {error.strerror or error}; it stays where it is")
        except GenderlineError as error:
            self._say_once(name, f"{path} waits: {error}")
        else:
            if run is None:
                _LOG.info("%s: submitted as %s", path, run_id)
            else:
                _LOG.warning("%s: its run %s is %s already; drop a copy to train once more", path, run_id, run.state)

    def _message_id(self, name: str, status: os.stat_result) -> str:
        """Derives the id of an archive's message from the file, so that the same file always has the same run.

        Only one that was dropped again after its run failed or was rejected gets another. Moving a file changes the
        time of its status, which is then later than its run; where a crash left it, that time is earlier.
        """
        message_id = _hashed_id(name, *_signature(status))
        run = self._client.runs.find(run_id_of(message_id))
        if run and run.state.is_retryable and iso(status.st_ctime) > run.created:
            return _hashed_id(name, *_signature(status), status.st_ctime_ns)
        return message_id

    def _copy_in(self, file: BinaryIO, signature: _Signature, name: str, message_id: str) -> bool:
        """Copies an archive into the store and submits it. Returns False where it changed meanwhile."""
        copy = StagedFile(self._client.store.staging_folder())
        try:
            file.seek(0)
            shutil.copyfileobj(file, copy, 2**20)
            copy.close()
            if _signature(os.fstat(file.fileno())) != signature:
                return False
            self._client.submit_dataset(copy.path, name=name, message_id=message_id, move=True, sha256=copy.sha256)
            return True
        finally:
            copy.discard()

    def _is_whole(self, file: BinaryIO) -> bool:
        head = file.read(512)
        try:
            if head.startswith(GZIP_SIGNATURE):
                with Path(os.devnull).open("wb") as nothing:
                    gunzip(file, nothing, self._limits.max_bytes, self._limits.max_ratio)
            elif is_tar(head):
                return has_end(file, read_tar(file, self._limits.max_members))
            else:
                check_archive(file, self._limits)
        except InvalidDataset as error:
            return error.code == "archive_too_large"
        return True

    def _say_once(self, name: str, text: str) -> None:
        if self._said.get(name) != text:
            self._said[name] = text
            _LOG.warning("%s", text)


def _signature(status: os.stat_result) -> _Signature:
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def _hashed_id(*identity: str | int) -> str:
    text = "\0".join(map(str, identity))
    return "inbox-" + hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]
