"""Which file system a folder lies on, and whether SQLite's write-ahead log works there."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from shared.broker.base import BrokerError

MOUNTS: Final = Path("/proc/self/mounts")
_SHARED: Final = ("nfs", "cifs", "smb", "9p", "fuse.sshfs", "fuse.s3fs", "ceph", "glusterfs", "lustre")
"""Where the log, which is shared memory, does not work among machines, or locks cannot be trusted."""
ADVICE: Final = "put the embedded broker on a disk of this machine, or use RabbitMQ (GENDERLINE_BROKER_URL=amqp://…)"


def require_own_disk(folder: Path) -> None:
    """Makes sure that a folder lies on a disk of this machine, as far as the machine tells.

    Raises:
        BrokerError: it is shared with other machines.
    """
    with contextlib.suppress(FileNotFoundError):  # no Linux
        kind = file_system_of(folder.resolve(), MOUNTS.read_text(encoding="utf-8"))
        if kind.startswith(_SHARED):
            raise BrokerError(f"{folder} is on {kind}, where SQLite loses data; {ADVICE}")


def file_system_of(folder: Path, mounts: str) -> str:
    """Returns the kind of file system that a folder lies on, such as `ext4`; `unknown` where no mount fits.

    Args:
        folder: absolute.
        mounts: the lines of `/proc/self/mounts`.
    """
    kinds = {}
    for line in mounts.splitlines():
        _, place, kind, *_ = line.split(" ")
        kinds[Path(place.encode().decode("unicode_escape"))] = kind  # a blank in a name is `\040` there
    return next((kinds[place] for place in [folder, *folder.parents] if place in kinds), "unknown")
