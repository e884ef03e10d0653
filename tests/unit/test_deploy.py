"""The files for containers and Prometheus name what exists."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from check_jsonschema.builtin_schemas import get_builtin_schema
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from shared.cli.reference_tables import metrics_reference, settings_reference
from shared.cli.service_urls import METRICS_PORTS
from shared.runtime.settings import Settings
from shared.telemetry.metrics import LABELS

REPOSITORY = Path(__file__).parents[2]
SERVICES = {"trainer", "trainer-gpu", "inference", "inference-gpu", "dashboard"}


def parsed(path: str) -> Any:
    # By JSON, so that merged anchors are ordinary values.
    return json.loads(json.dumps(YAML(typ="safe").load(REPOSITORY / path)))


@pytest.fixture
def compose() -> dict[str, Any]:
    found = parsed("docker-compose.yml")
    assert isinstance(found, dict)
    return found


def errors_of(compose: dict[str, Any]) -> list[str]:
    schema = get_builtin_schema("vendor.compose-spec")
    validator = jsonschema.validators.validator_for(schema)(schema)
    return [error.message for error in validator.iter_errors(compose)]


def test_the_compose_file_keeps_to_the_specification(compose: dict[str, Any]) -> None:
    assert errors_of(compose) == []


def test_the_specification_is_looked_at(compose: dict[str, Any]) -> None:
    compose["services"]["trainer"]["depend_on"] = []
    assert errors_of(compose)


def test_every_service_is_there(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == SERVICES | {"rabbitmq", "prometheus"}


def test_every_image_from_elsewhere_is_named_by_its_digest(compose: dict[str, Any]) -> None:
    used = re.findall(r"^FROM (\S+) AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    stages = {name for _, name in used}
    images = [image for image, _ in used if image not in stages]
    images += [service["image"] for service in compose["services"].values() if "image" in service]
    assert len(images) == 3
    for image in images:
        assert re.fullmatch(r"[a-z/]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_services_are_built_from_targets_that_the_dockerfile_has(compose: dict[str, Any]) -> None:
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE))
    built = {service["build"]["target"] for service in compose["services"].values() if "build" in service}
    assert built <= targets
    assert built | {"base"} == targets


def test_services_are_given_settings_that_exist_and_hold(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {row[0] for row in settings_reference().rows}
    for name in SERVICES:
        environment = compose["services"][name]["environment"]
        assert set(environment) <= known
        with monkeypatch.context() as patched:
            for variable, value in environment.items():
                patched.setenv(variable, re.sub(r"\$\{(\w+)(?::-([^}]*))?(?::\?[^}]*)?\}", r"\2a-long-secret", value))
            assert Settings().host == "0.0.0.0"


def test_services_wait_for_a_healthy_broker_and_share_one_store(compose: dict[str, Any]) -> None:
    assert "healthcheck" in compose["services"]["rabbitmq"]
    for name in SERVICES:
        service = compose["services"][name]
        assert service["depends_on"] == {"rabbitmq": {"condition": "service_healthy"}}
        mounted, temporary = service["volumes"]
        assert temporary == "/tmp"
        volume, folder = mounted.split(":")
        assert volume in compose["volumes"]
        assert service["environment"]["GENDERLINE_STORE_URL"].startswith(f"file:{folder}/")


def test_a_token_must_be_given(compose: dict[str, Any]) -> None:
    assert all(
        "GENDERLINE_TOKEN:?" in compose["services"][name]["environment"]["GENDERLINE_TOKEN"] for name in SERVICES
    )


def test_no_password_has_a_default_and_none_is_written_down(compose: dict[str, Any]) -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    for name in ("RABBITMQ_PASSWORD", "GENDERLINE_TOKEN"):
        assert set(re.findall(rf"\$\{{{name}(..)", text)) == {":?"}
    assert compose["services"]["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_PASS"].startswith("${")


def test_containers_are_confined(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["mem_limit"], name
        assert service["pids_limit"], name
        assert service.get("read_only") or name in {"rabbitmq", "prometheus"}, name


def test_no_read_only_service_has_a_secret_from_the_environment_which_compose_refuses(compose: dict[str, Any]) -> None:
    copied = {name for name, secret in compose["secrets"].items() if "environment" in secret or "content" in secret}
    assert copied
    for name, service in compose["services"].items():
        given = service.get("secrets", [])
        sources = {secret if isinstance(secret, str) else secret["source"] for secret in given}
        assert not (service.get("read_only") and sources & copied), name


def test_gpu_services_start_only_when_asked_for(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service.get("profiles") == (["gpu"] if name.endswith("-gpu") else None)


def test_workers_are_left_to_the_layout_which_knows_cores_and_gpus(compose: dict[str, Any]) -> None:
    assert [name for name in SERVICES if "GENDERLINE_WORKERS" in compose["services"][name]["environment"]] == []


def test_inference_can_be_scaled(compose: dict[str, Any]) -> None:
    service = compose["services"]["inference"]
    assert "ports" not in service
    assert "container_name" not in service


def test_only_the_dashboard_is_published_beyond_this_machine(compose: dict[str, Any]) -> None:
    published = {
        name
        for name, service in compose["services"].items()
        for port in service.get("ports", [])
        if not port.startswith("127.0.0.1:")
    }
    assert published == {"dashboard"}


def test_mounted_files_exist(compose: dict[str, Any]) -> None:
    sources = [volume.split(":")[0] for volume in compose["services"]["prometheus"]["volumes"]]
    files = [source for source in sources if source.startswith("./")]
    assert len(files) == 2
    assert all((REPOSITORY / file).is_file() for file in files)


def test_prometheus_scrapes_every_service_at_its_port(compose: dict[str, Any]) -> None:
    ports = {**METRICS_PORTS, "dashboard": Settings.model_fields["port"].default}
    scraped: dict[str, int] = {}
    for job in parsed("deploy/prometheus.yml")["scrape_configs"]:
        (secret,) = compose["services"]["prometheus"]["secrets"]
        assert job["authorization"]["credentials_file"] == f"/run/secrets/{secret}"
        for found in job["dns_sd_configs"]:
            scraped |= dict.fromkeys(found["names"], found["port"])
    assert scraped == {name: ports[name.removesuffix("-gpu")] for name in SERVICES}


def test_alerts_use_metrics_and_labels_that_exist() -> None:
    known = {row[0] for row in metrics_reference().rows}
    rules = [rule for group in parsed("deploy/alerts.yml")["groups"] for rule in group["rules"]]
    assert len(rules) >= 5
    for rule in rules:
        used = re.findall(r'(genderline_\w+|\bup\b)(?:\{(\w+)[!=~]+"([^"]*)")?', rule["expr"])
        assert used, rule["alert"]
        for name, label, value in used:
            if name != "up":
                metric = re.sub(r"_(bucket|sum|count)$", "", name)
                assert metric in known, rule["alert"]
                values = LABELS.get(metric.removesuffix("_total"), {}).get(label) if label else ()
                assert values is not None, rule["alert"]
                assert not values or set(value.split("|")) <= set(values), rule["alert"]
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_commands_that_alerts_advise_exist() -> None:
    from shared.cli import main

    advised = re.findall(r"`genderline (\w+)", (REPOSITORY / "deploy" / "alerts.yml").read_text())
    assert advised
    assert set(advised) <= set(main.commands)


@pytest.mark.parametrize("page", ["production.md", "proxy.md"])
def test_settings_to_copy_have_no_comment_behind_them_which_systemd_takes_for_a_part(page: str) -> None:
    lines = re.findall(r"^(?:GENDERLINE|AWS)_\w+=.*$", (REPOSITORY / "docs" / page).read_text(), flags=re.MULTILINE)
    assert lines
    assert [line for line in lines if "#" in line] == []


LOCKS = {
    "requirements.lock": ("trainer", "inference", "dashboard", "s3", "heic", "openvino"),
    "requirements-gpu.lock": ("inference-gpu", "s3", "heic"),
}


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_has_every_dependency_as_pinned_with_hashes_and_names_no_index(name: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        Requirement(line) for line in (*project["dependencies"], *(pin for key in LOCKS[name] for pin in extras[key]))
    ]
    text = (REPOSITORY / name).read_text()
    lines = re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([^ ;]+).*\\\n    --hash=sha256:", text, flags=re.MULTILINE)
    locked = dict(lines)

    assert {pin.name: str(pin.specifier) for pin in wanted} == {pin.name: f"=={locked[pin.name]}" for pin in wanted}
    assert len(lines) == len(re.findall("^[a-z]", text, flags=re.MULTILINE)), "each of them has a hash"
    assert "://" not in text
