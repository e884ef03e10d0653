"""`delete`."""

from __future__ import annotations

from shared.client import Client
from tests.support.builders.stores import StoreBuilder
from tests.unit.shared.cli.helpers import document, run


def test_a_job_is_deleted_and_what_is_in_use_is_refused(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    client.promote(builder.model(sha256, "run-a"), "first")
    assert run("delete", "job", builder.job("job-a")).stdout == "deleted job job-a\n"
    assert document("delete", "job", builder.job("job-b")) == {"deleted": "job-b", "dependents": []}
    assert client.jobs.all().records == []
    for kind, which in (("dataset", sha256), ("run", "run-a")):
        refused = run("delete", kind, which)
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert "version 1, the champion model," in refused.stderr
    assert document("delete", "run", "run-b", exit_code=1)["error"]["code"] == "not_found"
    assert "version 1 is the champion model" in run("delete", "model", "1").stderr
    assert run("delete", "epoch", "1").exit_code == 2


def test_what_depends_on_it_is_said_and_must_be_wanted(builder: StoreBuilder, client: Client) -> None:
    sha256 = builder.dataset(30)
    builder.model(sha256, "run-a")

    refused = run("delete", "dataset", sha256)
    assert refused.exit_code == 1
    assert "run run-a stays, but loses its faces; model 1 stays" in refused.stderr
    assert "expected --yes" in document("delete", "dataset", sha256, exit_code=1)["error"]["message"]
    assert client.store.children("datasets") == [sha256]

    assert [found["kind"] for found in document("delete", "dataset", sha256, "--yes")["dependents"]] == ["run", "model"]
    assert run("delete", "model", "1", "--yes").stdout == "deleted model 1\n"
    assert (client.store.children("datasets"), client.registry.versions()) == ([], [])
