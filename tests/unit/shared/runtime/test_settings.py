from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shared.runtime.resources import available_cores
from shared.runtime.settings import Settings, SettingsError, load_settings, unknown_settings, variable


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("GENDERLINE_")]:
        monkeypatch.delenv(name)


def fault(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    return str(caught.value)


def test_without_any_variable_the_defaults_of_the_contract_hold() -> None:
    settings = load_settings()
    assert (settings.broker_url, settings.store_url) == ("sqlite:///data/broker.db", "file:data/store")
    assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 8080, None)
    assert (settings.queue_prefix, settings.provider, settings.workers) == ("genderline", "auto", 0)
    assert settings.allowed_roots == (Path("data/inbox"),)


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_TOKEN", "")
    monkeypatch.setenv("GENDERLINE_PORT", "")
    assert (load_settings().token, load_settings().port) == (None, 8080)


def test_roots_are_separated_like_paths_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_ALLOWED_ROOTS", os.pathsep.join(["/srv/a", "", "/srv/b c"]))
    assert load_settings().allowed_roots == (Path("/srv/a"), Path("/srv/b c"))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("STORE_URL", "http://x", "expected file:PATH or s3://BUCKET/PREFIX"),
        ("STORE_URL", "file:", "expected file:PATH or s3://BUCKET/PREFIX"),
        ("STORE_URL", "file:///", "expected file:PATH or s3://BUCKET/PREFIX"),
        ("STORE_URL", "s3://", "expected file:PATH or s3://BUCKET/PREFIX"),
        ("STORE_URL", "s3:///prefix", "expected file:PATH or s3://BUCKET/PREFIX"),
        ("QUEUE_PREFIX", "a b", "should match pattern"),
        ("PORT", "99999", "less than or equal to 65535"),
        ("PORT", "http", "valid integer"),
        ("METRICS_PORT", "-1", "greater than or equal to 0"),
        ("URL_PREFIX", "faces", "should match pattern"),
        ("URL_PREFIX", "/faces/", "should match pattern"),
        ("URL_PREFIX", "//evil.example", "should match pattern"),
        ("TRUSTED_PROXIES", "nginx", "expected addresses or networks"),
        ("WORKERS", "-1", "greater than or equal to 0"),
        ("PROVIDER", "tpu", "'auto', 'cuda' or 'cpu'"),
        ("BATCH_SIZE", "0", "greater than or equal to 1"),
        ("BATCH_DELAY_MS", "nan", "less than or equal to 1000"),
        ("PREFETCH", "0", "greater than or equal to 1"),
        ("SHARD_IMAGES", "0", "greater than or equal to 1"),
        ("DELIVERY_LIMIT", "0", "greater than or equal to 1"),
        ("LEASE_S", "0.1", "greater than or equal to 0.2"),
        ("HANDOVER_S", "1800", "less than or equal to 1500"),
        ("CHECKPOINT_S", "-1", "greater than or equal to 0"),
        ("QUEUE_LIMIT", "0", "greater than or equal to 1"),
        ("MAX_ARCHIVE_BYTES", "1G", "valid integer"),
        ("MAX_MEMBERS", "0", "greater than or equal to 1"),
        ("MAX_IMAGE_BYTES", "0", "greater than or equal to 1"),
        ("MAX_IMAGE_PIXELS", "0", "greater than or equal to 1"),
        ("MAX_RATIO", "0.5", "greater than or equal to 1"),
        ("THREADS", "-1", "greater than or equal to 0"),
        ("DEVICE", "gpu", "'auto', 'cuda' or 'cpu'"),
        ("LOG_LEVEL", "loud", "'debug', 'info', 'warning' or 'error'"),
        ("LOG_FORMAT", "xml", "'text' or 'json'"),
    ],
)
def test_a_wrong_value_is_named_with_what_was_found_and_expected(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    text = fault(monkeypatch, **{f"GENDERLINE_{name}": value})
    assert text.startswith(f"GENDERLINE_{name}: ")
    assert expected in text
    assert f"(found '{value}')" in text
    assert len(text.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("BROKER_URL", "redis://user:hunter22@host", "expected sqlite:///PATH, amqp://… or amqps://…"),
        ("BROKER_URL", "amqp://user:hunter22@host:notaport/", "a number from 0 to 65535 as its port"),
        ("BROKER_URL", "amqp://user:hunter22@host:65536/", "a number from 0 to 65535 as its port"),
        ("BROKER_URL", "amqps://user:hunter2/2@host/", "a number from 0 to 65535 as its port"),
        ("BROKER_URL", "amqp://user:hunter22@[::1/", "expected a whole URL"),
        ("TOKEN", "hunter2", "at least 8 characters"),
        ("TOKEN", "hunter22 ", "expected ASCII characters, with no space at either end"),
        ("TOKEN", "hunter22\u00fc", "expected ASCII characters, with no space at either end"),
        ("TOKEN", "hunter22\nX-Admin: 1", "expected ASCII characters, with no space at either end"),
    ],
)
def test_a_wrong_value_that_may_be_a_secret_is_named_but_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    text = fault(monkeypatch, **{f"GENDERLINE_{name}": value})
    assert text.startswith(f"GENDERLINE_{name}: ")
    assert expected in text
    assert "hunter2" not in text


def test_a_bucket_without_the_extra_for_it_is_a_wrong_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    text = fault(monkeypatch, GENDERLINE_STORE_URL="s3://faces/prefix")
    assert text == (
        "GENDERLINE_STORE_URL: expected the extra `s3` to be installed for it: pip install '.[s3]' "
        "(found 's3://faces/prefix')"
    )


def test_all_wrong_variables_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    text = fault(monkeypatch, GENDERLINE_PORT="x", GENDERLINE_WORKERS="y")
    assert [line.partition(":")[0] for line in text.splitlines()] == ["GENDERLINE_PORT", "GENDERLINE_WORKERS"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "faces.example"])
def test_an_address_that_others_can_reach_needs_a_token(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    text = fault(monkeypatch, GENDERLINE_HOST=host)
    assert f"GENDERLINE_HOST is {host}, which others can reach: set GENDERLINE_TOKEN" in text
    monkeypatch.setenv("GENDERLINE_TOKEN", "long enough")
    assert load_settings().host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_token(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setenv("GENDERLINE_HOST", host)
    assert load_settings().token is None


def test_no_secret_is_in_any_printed_form() -> None:
    settings = Settings(token="hunter22hunter22", broker_url="amqp://user:hunter22@host")
    for text in (repr(settings), str(settings), f"{settings}", f"{settings!r}"):
        assert "hunter2" not in text
        assert "port=8080" in text


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]


def test_every_setting_says_what_it_does_and_has_its_variable() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert re.fullmatch("GENDERLINE_[A-Z0-9_]+", variable(name))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GENDERLINE_WORKER", "did you mean GENDERLINE_WORKERS?"),
        ("GENDERLINE_BROKER", "did you mean GENDERLINE_BROKER_URL?"),
        ("genderline_tokn", "did you mean GENDERLINE_TOKEN?"),
        ("GENDERLINE_COLOUR", "`genderline settings` lists those there are"),
    ],
)
def test_a_misspelt_setting_is_warned_of_with_the_one_that_may_be_meant(name: str, said: str) -> None:
    assert unknown_settings({name: "3", "HOME": "/root"}) == [f"unknown setting {name}; {said}"]


def test_nothing_is_warned_of_that_is_no_mistake() -> None:
    settings = dict.fromkeys(map(variable, Settings.model_fields), "")
    kubernetes = ("SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_8080_TCP_ADDR")
    assert unknown_settings(settings | {f"GENDERLINE_DASHBOARD_{name}": "" for name in kubernetes}) == []
    assert unknown_settings({"genderline_port": "1", "GENDER": "x"}) == []


def test_a_supervised_process_leaves_the_warning_to_its_supervisor() -> None:
    assert unknown_settings({"GENDERLINE_SUPERVISED": "1", "GENDERLINE_WORKER": "3"}) == []


def test_the_cores_are_those_that_affinity_and_quota_allow() -> None:
    assert Settings().cores == available_cores()
    one = min(os.sched_getaffinity(0))
    code = (
        "import os; from shared.runtime.settings import load_settings; "
        f"os.sched_setaffinity(0, {{{one}}}); print(load_settings().cores)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert child.stdout == "1\n"


def test_the_brokers_url_and_the_token_come_from_files_where_orchestrators_mount_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, content in (("broker_url", "amqp://user:hunter22@one,two:5673/v\n"), ("token", "mounted-token\n")):
        (tmp_path / name).write_text(content)
        monkeypatch.setenv(f"GENDERLINE_{name.upper()}_FILE", str(tmp_path / name))
    settings = load_settings()
    assert settings.broker_url == "amqp://user:hunter22@one,two:5673/v"
    assert settings.token == "mounted-token"
    assert "hunter22" not in repr(settings)
    monkeypatch.setenv("GENDERLINE_TOKEN", "another-token")
    with pytest.raises(SettingsError, match="GENDERLINE_TOKEN and GENDERLINE_TOKEN_FILE are both set"):
        load_settings()
    monkeypatch.delenv("GENDERLINE_TOKEN")
    for spoilt, why in ((b"\xff\xfe", "it is no UTF-8 text"), (b"\n", "it is empty")):
        (tmp_path / "token").write_bytes(spoilt)
        with pytest.raises(SettingsError, match=rf"GENDERLINE_TOKEN_FILE: .*token: {why}"):
            load_settings()
    (tmp_path / "token").unlink()
    with pytest.raises(SettingsError, match=r"GENDERLINE_TOKEN_FILE: .*token: No such file or directory"):
        load_settings()


def test_a_wrong_port_of_any_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENDERLINE_BROKER_URL", "amqp://user:hunter22@one:5672,two:port/")
    with pytest.raises(SettingsError, match="expected a whole URL, with a number from 0 to 65535 as its port"):
        load_settings()
