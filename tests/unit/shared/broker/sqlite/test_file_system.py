"""The embedded broker is refused where SQLite would lose data."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.broker.base import BrokerError
from shared.broker.sqlite import file_system
from shared.broker.sqlite.broker import SqliteBroker
from shared.broker.sqlite.file_system import file_system_of

MOUNTS = """\
/dev/sda1 / ext4 rw 0 0
server:/faces /srv/with\\040blank nfs4 rw 0 0
//server/share /srv/share cifs rw 0 0
"""


@pytest.mark.parametrize(
    ("folder", "kind"),
    [("/srv/with blank/data", "nfs4"), ("/srv/share", "cifs"), ("/srv", "ext4"), ("/home/me", "ext4")],
)
def test_the_file_system_is_that_of_the_innermost_mount(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind


@pytest.mark.parametrize(("kind", "refused"), [("nfs4", True), ("cifs", True), ("ext4", False), ("overlay", False)])
def test_a_broker_on_a_share_is_refused_with_the_way_out(
    kind: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"  # as Linux tells them
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path}/data {kind} rw 0 0\n")
    monkeypatch.setattr(file_system, "MOUNTS", mounts)
    if not refused:
        SqliteBroker(tmp_path / "data" / "broker.db").close()
        return
    with pytest.raises(BrokerError, match=f"is on {kind}, where SQLite loses data; put the embedded broker on a disk"):
        SqliteBroker(tmp_path / "data" / "broker.db")
