from __future__ import annotations

import hashlib
import os
import re
import sys
from pathlib import Path

import pytest

from shared.archives.fetch import fetch_archive
from shared.errors import InvalidDataset, InvalidMessage, Retryable
from shared.faces.labelling import LabelSpec
from shared.messages import ArchiveRequest
from shared.records.dataset import dataset_id
from shared.records.record import DamagedRecord
from shared.runtime.settings import Settings
from shared.store.files import FileStore
from tests.support.builders.archives import zipped

CONTENT = zipped([("30_0_0.jpg", b"a face")])
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Place:
    """A store, an allowed folder with one archive, and a folder for copies."""

    def __init__(self, root: Path) -> None:
        self.store = FileStore(root / "store")
        self.allowed = root / "allowed"
        self.outside = root / "outside"
        self.copies = root / "copies"
        for folder in (self.allowed, self.outside, self.copies):
            folder.mkdir()
        (self.allowed / "faces.zip").write_bytes(CONTENT)
        (self.outside / "secret.zip").write_bytes(CONTENT)

    def fetch(
        self, uri: str | None = None, *, body: bytes | None = None, sha256: str | None = None, limit: int = 1000
    ) -> Path:
        settings = Settings(allowed_roots=(self.allowed,), allowed_buckets=("bucket",), max_archive_bytes=limit)
        request = ArchiveRequest("m1", "faces", body=body, uri=uri, sha256=sha256)
        with fetch_archive(request, self.store, settings, self.copies) as path:
            assert path.read_bytes() == CONTENT
            return path

    def refusal(
        self, uri: str | None = None, *, body: bytes | None = None, sha256: str | None = None
    ) -> InvalidMessage:
        with pytest.raises(InvalidMessage) as caught:
            self.fetch(uri, body=body, sha256=sha256)
        return caught.value


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_an_archive_sent_by_value_becomes_a_file(place: Place) -> None:
    assert place.fetch(body=CONTENT).parent == place.copies


def test_an_archive_in_the_store_is_read_where_it_lies(place: Place) -> None:
    place.store.put("datasets/x/archive.zip", CONTENT)
    path = place.fetch("store:datasets/x/archive.zip", sha256=SHA256)
    assert path == place.store.path("datasets/x/archive.zip")


def test_an_archive_in_an_allowed_folder_is_copied(place: Place) -> None:
    assert place.fetch(f"file://{place.allowed}/faces.zip").parent == place.copies
    place.fetch(f"file://localhost{place.allowed}/faces.zip")


def test_a_uri_may_escape_characters(place: Place) -> None:
    (place.allowed / "my faces #1.zip").write_bytes(CONTENT)
    place.fetch(f"file://{place.allowed}/my%20faces%20%231.zip")


def test_no_link_no_dots_and_no_escape_leads_out_of_the_allowed_folder(place: Place) -> None:
    (place.allowed / "link.zip").symlink_to(place.outside / "secret.zip")
    (place.allowed / "folder").symlink_to(place.outside)
    for path in (
        f"{place.outside}/secret.zip",
        f"{place.allowed}/../outside/secret.zip",
        f"{place.allowed}/%2e%2e/outside/secret.zip",
        f"{place.allowed}/link.zip",
        f"{place.allowed}/folder/secret.zip",
        f"{place.allowed}-else/faces.zip",
        "/etc/passwd",
        "/etc/no-such-file",
    ):
        error = place.refusal(f"file://{path}")
        assert error.code == "uri_not_allowed"
        said = f"lies outside the allowed roots, GENDERLINE_ALLOWED_ROOTS: {place.allowed.resolve()}"
        assert str(error).endswith(said)


def test_that_no_folder_is_allowed_is_said(place: Place) -> None:
    request = ArchiveRequest("m1", "faces", uri=f"file://{place.allowed}/faces.zip")
    settings = Settings(allowed_roots=())
    with pytest.raises(InvalidMessage, match="GENDERLINE_ALLOWED_ROOTS: there are none"):
        fetch_archive(request, place.store, settings, place.copies).__enter__()


def test_a_link_inside_the_allowed_folder_is_followed(place: Place) -> None:
    (place.allowed / "newest.zip").symlink_to(place.allowed / "faces.zip")
    place.fetch(f"file://{place.allowed}/newest.zip")


def test_a_file_on_another_host_is_refused(place: Place) -> None:
    error = place.refusal(f"file://elsewhere{place.allowed}/faces.zip")
    assert error.code == "uri_not_allowed"
    assert "names the host 'elsewhere'; expected file:///PATH" in str(error)


@pytest.mark.parametrize("name", ["none.zip", "", "n" * 300, "faces.zip/below"])
def test_what_is_no_file_in_the_allowed_folder_is_not_found(place: Place, name: str) -> None:
    assert place.refusal(f"file://{place.allowed}/{name}").code == "uri_not_found"


def test_a_pipe_is_no_file(place: Place) -> None:
    os.mkfifo(place.allowed / "pipe.zip")
    assert place.refusal(f"file://{place.allowed}/pipe.zip").code == "uri_not_found"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_not_found(place: Place) -> None:
    (place.allowed / "faces.zip").chmod(0)
    error = place.refusal(f"file://{place.allowed}/faces.zip")
    assert error.code == "uri_not_found"
    assert "there is no file that can be read at" in str(error)


@pytest.mark.parametrize("uri", ["file:///a%00b", "file://[bad/x"])
def test_a_file_uri_that_is_no_path_is_refused(place: Place, uri: str) -> None:
    error = place.refusal(uri)
    assert error.code == "uri_not_allowed"
    assert f"uri '{uri}' is not a path; expected file:///PATH" in str(error)


@pytest.mark.parametrize(
    "uri", ["http://x/y.zip", "ftp://x", "/srv/x.zip", "x.zip", "FILE:///etc/passwd", "memory://x"]
)
def test_an_unknown_scheme_is_refused_with_those_that_are_known(place: Place, uri: str) -> None:
    error = place.refusal(uri)
    assert error.code == "uri_not_allowed"
    assert str(error) == f"uri is '{uri}'; expected store:KEY, file:///PATH or s3://BUCKET/KEY"


@pytest.mark.parametrize("key", ["../outside/secret.zip", "/etc/passwd", "", "a/.b"])
def test_no_key_leads_out_of_the_store(place: Place, key: str) -> None:
    assert place.refusal(f"store:{key}").code == "uri_not_allowed"


def test_a_key_without_an_object_is_not_found(place: Place) -> None:
    error = place.refusal("store:datasets/none/archive.zip")
    assert error.code == "uri_not_found"
    assert str(error) == "uri: there is no object 'datasets/none/archive.zip' in the store"


@pytest.mark.parametrize("swapped", ["faces.zip", "folder"])
def test_a_file_or_folder_that_is_swapped_for_a_link_after_the_check_leads_nowhere(place: Place, swapped: str) -> None:
    (place.allowed / "folder").mkdir()
    (place.allowed / "folder" / "secret.zip").write_bytes(CONTENT)
    path = place.allowed / "faces.zip" if swapped == "faces.zip" else place.allowed / "folder" / "secret.zip"
    resolve = Path.resolve

    def swap(self: Path, strict: bool = False) -> Path:
        resolved = resolve(self, strict)
        if self == path:  # the path is checked by what it resolves to; now a link takes its place
            (place.allowed / swapped).rename(place.allowed / "away")
            (place.allowed / swapped).symlink_to(place.outside / ("secret.zip" if swapped == "faces.zip" else ""))
        return resolved

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "resolve", swap)
        error = place.refusal(f"file://{path}")
    assert error.code == "uri_not_found"


def test_what_is_no_archive_is_refused_before_it_is_copied(place: Place) -> None:
    with (place.allowed / "sparse.zip").open("wb") as file:
        file.truncate(2 * 2**30)
    with pytest.raises(InvalidDataset, match="found unknown data, expected a zip, tar or"):
        place.fetch(f"file://{place.allowed}/sparse.zip", limit=2**40)
    assert list(place.copies.iterdir()) == []


def test_an_s3_reference_leads_to_allowed_buckets_only(place: Place) -> None:
    for allowed, said in ((), "there are none"), (("faces", "more"), "faces, more"):
        request = ArchiveRequest("m1", "faces", uri="s3://secrets/faces.zip")
        with pytest.raises(InvalidMessage, match=f"the allowed buckets, GENDERLINE_ALLOWED_BUCKETS: {said}") as caught:
            fetch_archive(request, place.store, Settings(allowed_buckets=allowed), place.copies).__enter__()
        assert caught.value.code == "uri_not_allowed"


def test_s3_without_its_extra_is_refused_with_its_name(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules, "shared.store.s3", raising=False)
    error = place.refusal("s3://bucket/faces.zip")
    assert error.code == "uri_not_allowed"
    assert "needs S3 support, which is not installed here (extra `s3`)" in str(error)


def test_another_sha256_than_the_message_s_is_a_mismatch_that_shows_both(place: Place) -> None:
    place.store.put("a.zip", CONTENT)
    for uri in ("store:a.zip", f"file://{place.allowed}/faces.zip"):
        error = place.refusal(uri, sha256="0" * 64)
        assert error.code == "sha256_mismatch"
        assert str(error) == f"the archive's SHA-256 is {SHA256}; the message says {'0' * 64}"


@pytest.mark.parametrize("damaged", [CONTENT[:-1] + b"?", CONTENT[:40], b"?" * len(CONTENT)])
@pytest.mark.parametrize("labels", [None, LabelSpec.parse({"male": ["m"], "female": ["f"]})])
def test_an_archive_that_was_damaged_in_the_store_is_not_called_its_sender_s_fault(
    place: Place, damaged: bytes, labels: LabelSpec | None
) -> None:
    key = f"datasets/{dataset_id(SHA256, labels)}/archive.zip"
    place.store.put(key, damaged)
    request = ArchiveRequest("m1", "faces", uri=f"store:{key}", sha256=SHA256, labels=labels)
    found = hashlib.sha256(damaged).hexdigest()
    told = f"{key} in the store is damaged: found the SHA-256 {found}, expected {SHA256}. Submit the archive once more"
    with (
        pytest.raises(DamagedRecord, match=re.escape(told)),
        fetch_archive(request, place.store, Settings(), place.copies),
    ):
        pass


def test_an_archive_over_the_limit_is_refused_with_both_sizes(place: Place) -> None:
    place.store.put("a.zip", CONTENT)
    for uri, body in (("store:a.zip", None), (f"file://{place.allowed}/faces.zip", None), (None, CONTENT)):
        place.fetch(uri, body=body, limit=len(CONTENT))
        with pytest.raises(
            InvalidMessage, match=f"has {len(CONTENT)} bytes; at most {len(CONTENT) - 1} are taken"
        ) as caught:
            place.fetch(uri, body=body, limit=len(CONTENT) - 1)
        assert caught.value.code == "archive_too_large"


def test_a_disk_without_room_for_the_copy_is_retryable(place: Place) -> None:
    place.copies.rmdir()
    with pytest.raises(Retryable, match=r"cannot write .*archive\.zip: No such file or directory"):
        place.fetch(body=CONTENT)
