"""`delete`."""

from __future__ import annotations

from shared.client import Client
from tests.store_builder import StoreBuilder
from tests.unit.shared.cli.helpers import document, run


def test_a_job_is_deleted_and_what_is_in_use_is_refused(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    client.promote(builder.model(sha256, "run-a"), "first")
    assert run("delete", "job", builder.job("job-a")).stdout == "deleted job job-a\n"
    assert document("delete", "job", builder.job("job-b")) == {"deleted": "job-b"}
    assert client.jobs.all().records == []
    for kind, which in (("dataset", sha256), ("run", "run-a")):
        refused = run("delete", kind, which)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "version 1, the champion model," in refused.stderr
    assert document("delete", "run", "run-b", exit_code=1)["error"]["code"] == "not_found"
    assert run("delete", "model", "1").exit_code == 2
