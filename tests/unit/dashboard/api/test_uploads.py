"""Uploads in parts: as a client sends them, cut off and resumed, and what is refused."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from werkzeug.test import TestResponse

from dashboard.incoming import KEPT_S, IncomingUploads
from shared.errors import Retryable
from tests.support.builders.archives import zipped
from tests.support.dashboard_app import Site, error_of, open_site

PART = "application/offset+octet-stream"
ARCHIVE = zipped([(f"30_{i % 2}_0_{i}.jpg", random.Random(i).randbytes(20_000)) for i in range(40)])


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with open_site(tmp_path) as site:
        yield site


def begin(site: Site, size: int = len(ARCHIVE)) -> str:
    answer = site.web.post("/api/v1/uploads", headers={"Upload-Length": str(size)})
    assert answer.status_code == 201, answer.text
    found = json.loads(answer.data)
    assert found["offset"] == 0
    assert answer.headers["Location"].endswith(f"/api/v1/uploads/{found['upload_id']}")
    return str(found["upload_id"])


def append(site: Site, upload_id: str, offset: int, data: bytes) -> TestResponse:
    return site.web.patch(
        f"/api/v1/uploads/{upload_id}", headers={"Upload-Offset": str(offset)}, data=data, content_type=PART
    )


def offset_of(site: Site, upload_id: str) -> int:
    answer = site.web.head(f"/api/v1/uploads/{upload_id}")
    assert answer.headers["Upload-Length"] == str(len(ARCHIVE))
    return int(answer.headers["Upload-Offset"])


def staged(site: Site) -> list[Path]:
    return list(site.store.staging_folder().iterdir())


def test_an_archive_in_parts_becomes_a_run_and_is_written_once(site: Site) -> None:
    upload_id = begin(site)
    (file,) = staged(site)
    for start in range(0, len(ARCHIVE), 300_000):
        answer = append(site, upload_id, start, ARCHIVE[start : start + 300_000])
        assert answer.status_code == 204, answer.text
    inode = file.stat().st_ino
    answer = site.web.post(f"/api/v1/datasets?name=faces&upload={upload_id}")
    assert answer.status_code == 202, answer.text
    sha256 = hashlib.sha256(ARCHIVE).hexdigest()
    path = site.store.path(f"datasets/{sha256}/archive.zip")
    assert (path.read_bytes(), path.stat().st_ino) == (ARCHIVE, inode)
    assert site.parts.client.runs.get(json.loads(answer.data)["run_id"]).name == "faces"
    assert staged(site) == []


def test_a_job_s_archive_may_come_in_parts_too(site: Site) -> None:
    upload_id = begin(site)
    append(site, upload_id, 0, ARCHIVE)
    answer = site.web.post(f"/api/v1/jobs?upload={upload_id}")
    assert answer.status_code == 202, answer.text
    assert site.store.get(f"jobs/{json.loads(answer.data)['job_id']}/archive.zip") == ARCHIVE


def test_a_client_that_was_cut_off_goes_on_where_it_stopped_even_after_a_restart(tmp_path: Path) -> None:
    with open_site(tmp_path) as site:
        upload_id = begin(site)
        append(site, upload_id, 0, ARCHIVE[:700_000])
    with open_site(tmp_path) as site:
        assert offset_of(site, upload_id) == 700_000
        assert append(site, upload_id, 700_000, ARCHIVE[700_000:]).status_code == 204
        assert site.web.post(f"/api/v1/datasets?upload={upload_id}").status_code == 202
        assert site.store.children("datasets") == [hashlib.sha256(ARCHIVE).hexdigest()]


def test_a_wrong_offset_is_told_the_right_one(site: Site) -> None:
    upload_id = begin(site)
    append(site, upload_id, 0, ARCHIVE[:1000])
    answer = append(site, upload_id, 0, ARCHIVE[:1000])
    assert answer.status_code == 409
    assert error_of(answer.data) == ("conflict", "found Upload-Offset 0, expected 1000: so many bytes are here")
    assert offset_of(site, upload_id) == 1000


def test_more_bytes_than_were_announced_are_refused(site: Site) -> None:
    upload_id = begin(site)
    assert append(site, upload_id, 0, ARCHIVE + b"x").status_code == 400
    assert offset_of(site, upload_id) == 0


@pytest.mark.parametrize("call", ["datasets", "jobs"])
def test_a_repeated_request_whose_first_answer_was_lost_gets_it_though_the_upload_is_used(
    site: Site, call: str
) -> None:
    upload_id = begin(site)
    append(site, upload_id, 0, ARCHIVE)
    headers = {"Idempotency-Key": "monday"}
    first, second = (site.web.post(f"/api/v1/{call}?upload={upload_id}", headers=headers) for _ in range(2))
    assert (second.status_code, second.headers["Location"]) == (202, first.headers["Location"])
    other = site.web.post(f"/api/v1/{call}?upload={upload_id}", headers={"Idempotency-Key": "tuesday"})
    assert other.status_code == 404


@pytest.mark.parametrize(("call", "kind"), [("datasets", "run"), ("jobs", "job")])
def test_a_key_that_comes_with_another_archive_is_refused_and_its_upload_stays(
    site: Site, call: str, kind: str
) -> None:
    headers = {"Idempotency-Key": "monday"}
    first = site.web.post(
        f"/api/v1/{call}", data=zipped([("30_0_0.jpg", b"a face")]), content_type="application/zip", headers=headers
    )
    which = json.loads(first.data)[f"{kind}_id"]
    stored = {key: site.store.children(key) for key in ("datasets", "jobs")}
    upload_id = begin(site)
    append(site, upload_id, 0, ARCHIVE)
    answer = site.web.post(f"/api/v1/{call}?upload={upload_id}", headers=headers)
    assert (answer.status_code, error_of(answer.data)[0]) == (409, "conflict")
    assert f"the key 'monday' belongs to {which} of" in error_of(answer.data)[1]
    assert {key: site.store.children(key) for key in ("datasets", "jobs")} == stored
    assert site.web.post(f"/api/v1/{call}?upload={upload_id}").status_code == 202


def test_an_upload_that_is_not_complete_starts_nothing_and_stays(site: Site) -> None:
    upload_id = begin(site)
    append(site, upload_id, 0, ARCHIVE[:1000])
    answer = site.web.post(f"/api/v1/datasets?upload={upload_id}")
    assert answer.status_code == 409
    assert f"found 1,000 of {len(ARCHIVE):,} bytes" in error_of(answer.data)[1]
    assert offset_of(site, upload_id) == 1000


def test_wrong_parameters_leave_the_upload_to_be_used_with_right_ones(site: Site) -> None:
    upload_id = begin(site)
    append(site, upload_id, 0, ARCHIVE)
    assert site.web.post(f'/api/v1/datasets?upload={upload_id}&params={{"epoch":3}}').status_code == 400
    assert site.web.post(f'/api/v1/datasets?upload={upload_id}&params={{"epochs":3}}').status_code == 202
    assert site.web.post(f"/api/v1/datasets?upload={upload_id}").status_code == 404


def test_what_is_no_archive_is_refused_and_removed(site: Site) -> None:
    upload_id = begin(site, 5)
    append(site, upload_id, 0, b"hello")
    answer = site.web.post(f"/api/v1/datasets?upload={upload_id}")
    assert (answer.status_code, error_of(answer.data)[0]) == (400, "invalid_archive")
    assert staged(site) == []


@pytest.mark.parametrize("call", ["datasets", "jobs"])
def test_a_form_with_two_archives_is_refused_and_stores_neither(site: Site, call: str) -> None:
    files = [(io.BytesIO(zipped([(f"30_{i}_0.jpg", b"a face")])), name) for i, name in enumerate(("a.zip", "b.zip"))]
    answer = site.web.post(f"/api/v1/{call}", data={"file": files})
    assert (answer.status_code, error_of(answer.data)) == (
        400,
        (
            "invalid_message",
            "found 2 files in the field 'file' ('a.zip', 'b.zip'); expected one archive, so send each in a request of "
            "its own",
        ),
    )
    assert site.store.children("") == []
    assert staged(site) == []


def test_an_empty_field_beside_the_archive_is_no_file(site: Site) -> None:
    files = [(io.BytesIO(b""), ""), (io.BytesIO(zipped([("30_0_0.jpg", b"a face")])), "a.zip")]
    assert site.web.post("/api/v1/jobs", data={"file": files}).status_code == 202


def test_a_given_up_upload_leaves_nothing(site: Site) -> None:
    upload_id = begin(site)
    assert site.web.delete(f"/api/v1/uploads/{upload_id}").status_code == 204
    assert site.web.get(f"/api/v1/uploads/{upload_id}").status_code == 404
    assert staged(site) == []


@pytest.mark.parametrize("upload_id", ["none", "*", "..", "0" * 32])
def test_an_unknown_upload_is_not_found(site: Site, upload_id: str) -> None:
    begin(site)
    assert append(site, upload_id, 0, b"x").status_code in {404, 405}
    assert site.web.post("/api/v1/datasets", query_string={"upload": upload_id}).status_code == 404


@pytest.mark.parametrize("length", ["", "-1", "many", "1" * 16, "\u0661"])
def test_a_length_that_is_none_is_refused(site: Site, length: str) -> None:
    answer = site.web.post("/api/v1/uploads", headers={"Upload-Length": length.encode().decode("latin-1")})
    assert error_of(answer.data)[0] == "invalid_message"


def test_an_upload_over_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with open_site(tmp_path, max_archive_bytes=10_000) as site:
        answer = site.web.post("/api/v1/uploads", headers={"Upload-Length": "10001"})
        assert (answer.status_code, error_of(answer.data)[0]) == (413, "too_large")


def test_an_upload_for_which_the_disk_has_no_room_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    with pytest.raises(Retryable, match="has room for"):
        IncomingUploads(tmp_path, 10**18).create(shutil.disk_usage(tmp_path).free + 2**40)


def test_two_requests_at_once_do_not_mix_their_bytes(site: Site) -> None:
    upload_id = begin(site)
    barrier = threading.Barrier(4)
    found: list[int] = []

    def send() -> None:
        barrier.wait()
        found.append(append(site, upload_id, 0, ARCHIVE).status_code)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [204, 409, 409, 409]
    assert site.web.post(f"/api/v1/datasets?upload={upload_id}").status_code == 202
    assert site.store.children("datasets") == [hashlib.sha256(ARCHIVE).hexdigest()]


def test_what_nobody_goes_on_with_is_removed(site: Site) -> None:
    begin(site)
    (old,) = staged(site)
    os.utime(old, (time.time() - KEPT_S - 60,) * 2)
    begin(site)
    assert old not in staged(site)
    assert len(staged(site)) == 1
