"""The store in a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Final

from shared.errors import NotFound, Retryable
from shared.store.base import Fence, Store, checked_key

_DELETE_TRIES: Final = 10


class FileStore(Store):
    """The store in a folder. Several processes of one machine, or of many over a shared file system, may use it.

    Args:
        root: the folder.
        make: whether to make it. That is done here, and never again: a folder that has gone is away, and not empty.
    """

    def __init__(self, root: str | Path, *, make: bool = True) -> None:
        self.root = Path(root).absolute()
        if make:
            with _writing(f"its folder {self.root}"):
                _make_folder(self.root)

    def path(self, key: str) -> Path:
        """Returns where an object lies, or would lie."""
        return self.root / checked_key(key)

    def put(self, key: str, data: bytes) -> None:  # noqa: D102
        with _writing(key), self._written_aside(key, data) as (temporary, target):
            temporary.replace(target)

    def create(self, key: str, data: bytes) -> bool:  # noqa: D102
        with _writing(key), self._written_aside(key, data) as (temporary, target):
            try:
                # A hard link, unlike a rename, fails where the name is taken.
                target.hardlink_to(temporary)
            except FileExistsError:
                return False
        return True

    def put_file(self, key: str, path: Path) -> None:  # noqa: D102
        target = self.path(key)
        with path.open("rb"):  # a file that cannot be read is not the store's fault
            pass
        with _writing(key):
            _make_folder(target.parent, self.root)
            with _aside(target) as (file, temporary):
                _move(path, temporary, file)
                temporary.replace(target)
            _sync_folder(target.parent)

    def put_fenced(self, key: str, content: bytes | Path, fence: Fence) -> None:  # noqa: D102
        target, staged = self.path(key), self._staged(fence)
        with _writing(key):
            _make_folder(target.parent, self.root)
            _make_folder(staged, self.root)
            temporary = staged / f"{fence.number}-{uuid.uuid4().hex}"
        try:
            with _writing(key), temporary.open("xb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                    _sync(file)
                else:
                    _move(content, temporary, file)
            # The order is what fences: this owner makes its file and then looks at the lease; a new one acquires the
            # lease and then deletes such files. So one of both sees the other, whenever this process was stopped.
            fence.require()
            with _writing(key):
                try:
                    temporary.replace(target)
                except FileNotFoundError:
                    fence.require()
                    raise
                _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)

    def discard_staged(self, fence: Fence) -> None:  # noqa: D102
        staged = self._staged(fence)
        with _writing(fence.folder):
            for file in staged.iterdir() if staged.is_dir() else ():
                if int(file.name.partition("-")[0]) < fence.number:
                    file.unlink(missing_ok=True)

    def get(self, key: str) -> bytes:  # noqa: D102
        with _reading(key):
            return self.path(key).read_bytes()

    def exists(self, key: str) -> bool:  # noqa: D102
        with _reading(key):
            return self.path(key).is_file()

    def size(self, key: str) -> int:  # noqa: D102
        with self.local(key) as path, _reading(key):
            return path.stat().st_size

    def children(self, prefix: str) -> list[str]:  # noqa: D102
        folder = self.path(prefix) if prefix else self.root
        try:
            with _reading(prefix):
                names = os.listdir(folder)  # noqa: PTH208 - names only
        except NotFound:
            return []
        return sorted(name for name in names if not name.startswith("."))

    def folders_with(self, prefix: str, name: str) -> list[str]:  # noqa: D102
        return [folder for folder in self.children(prefix) if self.exists(f"{prefix}/{folder}/{name}")]

    def delete(self, key: str) -> None:  # noqa: D102
        path = self.path(key)
        with contextlib.suppress(NotFound), _reading(key):
            if path.is_dir():
                _remove_folder(path)
            else:
                path.unlink(missing_ok=True)

    def update(self, key: str, change: Callable[[bytes | None], bytes | None]) -> None:  # noqa: D102
        with self._exclusive(key):
            try:
                before = self.get(key)
            except NotFound:
                before = None
            if (after := change(before)) is not None:
                self.put(key, after)

    @contextlib.contextmanager
    def local(self, key: str) -> Iterator[Path]:  # noqa: D102
        if not self.exists(key):
            raise _not_found(key)
        yield self.path(key)

    def staging_folder(self) -> Path:  # noqa: D102
        folder = self.root / ".staging"
        with _writing("its folder .staging"):
            _make_folder(folder, self.root)
        return folder

    def ping(self) -> bool:  # noqa: D102
        return os.access(self.root, os.W_OK)

    def _staged(self, fence: Fence) -> Path:
        return self.path(fence.folder) / ".staged"

    @contextlib.contextmanager
    def _written_aside(self, key: str, data: bytes) -> Iterator[tuple[Path, Path]]:
        """Writes a hidden, synced file next to the object's place, and makes what the caller does with it durable."""
        target = self.path(key)
        _make_folder(target.parent, self.root)
        with _aside(target) as (file, temporary):
            file.write(data)
            _sync(file)
            yield temporary, target
        _sync_folder(target.parent)

    @contextlib.contextmanager
    def _exclusive(self, key: str) -> Iterator[None]:
        """Holds a lock on the key against every other thread and process; the kernel frees it if the holder dies."""
        import fcntl  # noqa: PLC0415 - POSIX only, and only here

        target = self.path(key)
        with contextlib.ExitStack() as stack:
            with _writing(key):
                _make_folder(target.parent, self.root)
                lock = stack.enter_context(target.with_name(f".{target.name}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[tuple[IO[bytes], Path]]:
    """Gives a new hidden file next to `target`, and removes it afterwards if it is still there.

    Who may read it is what the process's umask says, unlike with `tempfile`.
    """
    temporary = target.with_name(f".{target.name[:40]}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _move(path: Path, target: Path, file: IO[bytes]) -> None:
    """Moves a file over another one, which is open as `file`, synced and with its permissions."""
    with path.open("rb") as source:
        with contextlib.suppress(PermissionError):  # a file may be moved without being owned
            path.chmod(os.fstat(file.fileno()).st_mode & 0o777)
        os.fsync(source.fileno())
        try:
            path.replace(target)
        except OSError as error:
            # A rename does not cross file systems, nor two mounts of the same one: there the file is copied.
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfileobj(source, file, 2**20)
            _sync(file)
            path.unlink()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: a file's own sync says nothing of the name it was given."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(folder: Path, root: Path | None = None) -> None:
    """Makes a folder and those above it, durably; but for `root`, which must be there."""
    if folder.is_dir():
        return
    if folder == root:
        raise FileNotFoundError(errno.ENOENT, f"the store's folder {root} is gone")
    _make_folder(folder.parent, root)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _remove_folder(folder: Path) -> None:
    """Removes a folder with all that is in it, though others take files away or add some meanwhile."""
    for _ in range(_DELETE_TRIES):
        try:
            shutil.rmtree(folder)
        except OSError as error:
            # It ends where a file has gone, or one has come: others may be left.
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY}:
                raise
        if not folder.exists():
            return
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))


def _not_found(key: str) -> NotFound:
    return NotFound(f"there is no object {key!r} in the store")


@contextlib.contextmanager
def _reading(key: str) -> Iterator[None]:
    """Turns the operating system's errors into ours, where a missing file means a missing object."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise _not_found(key) from None
    except OSError as error:
        raise _failed(key, error) from error


@contextlib.contextmanager
def _writing(what: str) -> Iterator[None]:
    """Turns the operating system's errors into ours."""
    try:
        yield
    except OSError as error:
        raise _failed(what, error) from error


def _failed(what: str, error: OSError) -> Retryable:
    return Retryable(f"the store failed on {what}: {error.strerror or error}")
