"""Each service runs with its own extra and nothing else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SERVICES = ("trainer", "inference", "dashboard")
# What no service may need although it is installed here, for the tests' sake or for a neighbour's.
FOREIGN = {
    "trainer": {"flask", "waitress", "pytest", "playwright"},
    "inference": {"torch", "torchvision", "onnx", "onnxscript", "scikit-learn", "flask", "waitress", "pytest"},
    "dashboard": {"torch", "torchvision", "onnx", "onnxruntime", "scikit-learn", "pytest", "playwright"},
}

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [package.__name__, *(module.name for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."))]
for name in names:
    importlib.import_module(name)
print(*names)
print(*sys.modules)
"""
# Takes long to load, and is needed only once a run has trained.
LATE = {"sklearn"}


def project() -> dict[str, object]:
    found = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert isinstance(found, dict)
    return found


def requirements(service: str) -> list[Requirement]:
    described = project()
    base, extras = described["dependencies"], described["optional-dependencies"]
    assert isinstance(base, list)
    assert isinstance(extras, dict)
    return [Requirement(line) for line in (*base, *extras[service])]


def closure(wanted: list[Requirement]) -> set[str]:
    """Returns the names of all installed distributions that the requirements bring with them."""
    found: set[str] = set()
    visited: set[tuple[str, frozenset[str]]] = set()
    todo = [(item, frozenset({""})) for item in wanted]
    while todo:
        item, extras = todo.pop()
        if item.marker and not any(item.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(item.name)
        inner = frozenset(item.extras) | {""}
        if (name, inner) in visited:
            continue
        visited.add((name, inner))
        try:
            needed = distribution(name).requires or []
        except PackageNotFoundError:
            continue  # optional on this platform; what is really missing fails at import
        found.add(name)
        todo += [(Requirement(line), inner) for line in needed]
    return found


def link_distributions(names: set[str], folder: Path) -> None:
    """Makes a folder of links to exactly these distributions' files: an environment without the others."""
    for name in names:
        files = distribution(name).files or []
        root = Path(str(distribution(name).locate_file("")))
        for part in {file.parts[0] for file in files if file.parts[0] not in {"..", "__pycache__"}}:
            shared_folder = (root / part).is_dir() and not (root / part / "__init__.py").exists()
            if not shared_folder or part.endswith(".dist-info"):
                (folder / part).symlink_to(root / part)
                continue
            # A namespace, such as `nvidia`, belongs to several distributions: only this one's part of it.
            for file in files:
                if file.parts[0] == part:
                    target = folder / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(root / file)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_with_its_extra_alone(service: str, tmp_path: Path) -> None:
    names = closure(requirements(service))
    assert names & {canonicalize_name(name) for name in FOREIGN[service]} == set()
    packages = tmp_path / "packages"
    packages.mkdir()
    link_distributions(names, packages)
    code = tmp_path / "code"
    code.mkdir()
    for package in ("shared", service):
        (code / package).symlink_to(REPOSITORY / package)
    done = subprocess.run(
        # -S leaves out this environment's own packages, so that only the links are there.
        [sys.executable, "-S", "-c", IMPORT_ALL, service],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{packages}{os.pathsep}{code}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modules, loaded = (line.split() for line in done.stdout.splitlines())
    assert f"{service}.__main__" in modules
    # All of the service, not just what `__main__` imports at once.
    assert len(modules) == len(list((REPOSITORY / service).rglob("*.py")))
    assert LATE & {*loaded} == set()


def test_the_trainer_needs_nothing_of_cuda(tmp_path: Path) -> None:
    names = closure(requirements("trainer"))
    of_cuda = {name for name in names if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    link_distributions(names - of_cuda, tmp_path)
    code = """
import torch
import trainer.__main__, trainer.release.export
from trainer.training.device import choose_device
assert choose_device("auto").type == "cpu"
print((torch.ones(2, 3) @ torch.ones(3, 2)).sum().item())
"""
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "12.0\n"), done.stderr


def test_pytorch_without_cuda_satisfies_the_pins() -> None:
    # What its own index calls it. Of equal versions, pip takes the one with a label: `CPU=1` needs no pin of its own.
    pins = {item.name: item for item in requirements("trainer") if item.name.startswith("torch")}
    assert set(pins) == {"torch", "torchvision"}
    for pin in pins.values():
        (version,) = pin.specifier
        assert pin.specifier.contains(f"{version.version}+cpu")


def test_an_environment_of_links_lacks_what_is_not_asked_for(tmp_path: Path) -> None:
    link_distributions({"click"}, tmp_path)
    command = [sys.executable, "-S", "-c", "import click; import numpy"]
    done = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert "No module named 'numpy'" in done.stderr


@pytest.mark.skipif(os.environ.get("CI") != "true", reason="two real virtual environments are made in CI only")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("service", ["inference", "dashboard"])
def test_a_bare_virtual_environment_with_the_extra_runs_the_service(service: str, tmp_path: Path) -> None:
    # What the Dockerfile does, step by step.
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    app = tmp_path / "app"
    app.mkdir()
    for name in ("pyproject.toml", "README.md"):
        (app / name).write_bytes((REPOSITORY / name).read_bytes())
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", f".[{service}]"]
    subprocess.run(install, cwd=app, check=True)
    for package in ("shared", service):
        (app / package).symlink_to(REPOSITORY / package)
    subprocess.run([str(python), "-c", IMPORT_ALL, service], cwd=app, check=True)


def stages() -> dict[str, str]:
    """Returns the Dockerfile's stages: name → its instructions."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    return {parts[i + 1]: parts[i + 2] for i in range(1, len(parts), 3)}


@pytest.mark.parametrize("target", ["trainer", "inference", "inference-gpu", "dashboard"])
def test_an_image_installs_one_extra_and_runs_one_module_without_root(target: str) -> None:
    stage, service = stages()[target], target.removesuffix("-gpu")
    constraints = "requirements-gpu.txt" if target.endswith("-gpu") else "requirements.txt"
    install = f'pip install --constraint {constraints} ".[{target},s3,heic]"'
    assert re.findall(r"^RUN (.*)$", stage, flags=re.MULTILINE) == [install]
    extras = project()["optional-dependencies"]
    assert isinstance(extras, dict)
    assert target in extras
    assert re.findall(r"^COPY (\S+) (\S+)$", stage, flags=re.MULTILINE) == [("shared", "shared"), (service, service)]
    assert f'CMD ["python", "-m", "{service}"]' in stage
    assert "\nUSER genderline\n" in stage
    (port,) = re.findall(r"^EXPOSE (\d+)$", stage, flags=re.MULTILINE)
    assert f"http://127.0.0.1:{port}/healthz" in stage


def test_images_and_units_send_nothing_to_the_maker_of_onnx_runtime() -> None:
    assert "ENV ORT_DISABLE_TELEMETRY=1" in stages()["base"].splitlines()
    unit = REPOSITORY / "deploy" / "genderline@.service"
    assert "Environment=ORT_DISABLE_TELEMETRY=1" in unit.read_text().splitlines()


def test_the_trainer_s_image_can_take_pytorch_without_cuda() -> None:
    before_pip = stages()["trainer"].partition("RUN pip install")[0]
    assert "ARG PIP_EXTRA_INDEX_URL" in before_pip.splitlines()  # which pip reads from the environment


def test_an_image_s_constraints_are_the_versions_of_the_lock_files(tmp_path: Path) -> None:
    (command,) = re.findall(r"^RUN (for lock in .*?done)$", stages()["base"], flags=re.MULTILINE | re.DOTALL)
    for name in ("requirements", "requirements-gpu"):
        (tmp_path / f"{name}.lock").write_bytes((REPOSITORY / f"{name}.lock").read_bytes())
    subprocess.run(["sh", "-ec", command], cwd=tmp_path, check=True)
    for name in ("requirements", "requirements-gpu"):
        locked = re.findall(r"^([a-z0-9].*?) *\\$", (tmp_path / f"{name}.lock").read_text(), flags=re.MULTILINE)
        constraints = [Requirement(line) for line in (tmp_path / f"{name}.txt").read_text().splitlines()]
        assert [(item.name, item.specifier, item.marker) for item in map(Requirement, locked)] == [
            (item.name, item.specifier, item.marker) for item in constraints
        ]
        assert not any(item.extras for item in constraints), "pip refuses extras in constraints"
        assert len(constraints) > 40


def test_images_copy_nothing_that_docker_is_told_to_leave_out() -> None:
    kept = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (.*) \S+$", (REPOSITORY / "Dockerfile").read_text(), flags=re.MULTILINE)
    assert {name for line in copied for name in line.split()} == kept
    assert all((REPOSITORY / name).exists() for name in kept)
