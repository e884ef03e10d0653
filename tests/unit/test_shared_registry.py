from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import Conflict, NotFound
from shared.registry import Aliases, Registry
from shared.store import FileStore
from tests.store_process import race


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "store")


@pytest.fixture
def registry(store: FileStore) -> Registry:
    return Registry(store)


def register(registry: Registry, run_id: str, folder: Path) -> int:
    version = registry.claim(run_id)
    model = folder / f"{run_id}.onnx"
    model.write_bytes(run_id.encode())
    registry.register(version, {"run_id": run_id, "version": version}, "# card", {"model.onnx": model})
    return version


def test_processes_that_claim_at_the_same_time_never_share_a_number(store: FileStore, registry: Registry) -> None:
    assert sorted(race(store.root, [["claim", f"run-{n}"] for n in range(4)])) == ["1", "2", "3", "4"]
    assert registry.claim("run-new") == 5


def test_processes_that_claim_for_one_run_get_one_number(store: FileStore, registry: Registry) -> None:
    assert race(store.root, [["claim", "run-1"]] * 4) == ["1"] * 4
    assert registry.claim("run-2") == 2


def test_the_same_run_gets_the_same_version_before_and_after_it_is_registered(
    registry: Registry, tmp_path: Path
) -> None:
    assert [registry.claim("run-1"), registry.claim("run-2"), registry.claim("run-1")] == [1, 2, 1]
    assert register(registry, "run-1", tmp_path) == 1
    assert register(registry, "run-1", tmp_path) == 1
    assert registry.versions() == [1]


def test_a_claimed_version_is_not_listed_before_it_is_registered(registry: Registry, tmp_path: Path) -> None:
    registry.claim("run-unfinished")
    assert registry.versions() == []
    with pytest.raises(NotFound, match="there is no model version 1; registered: none"):
        registry.card(1)
    with pytest.raises(NotFound, match="version 1"):
        registry.promote(1, "too early")
    assert register(registry, "run-2", tmp_path) == 2
    assert registry.versions() == [2]
    assert registry.version_of_run("run-unfinished") is None


def test_a_registered_version_has_its_card_and_files(store: FileStore, registry: Registry, tmp_path: Path) -> None:
    version = register(registry, "run-1", tmp_path)
    assert registry.card(version)["run_id"] == "run-1"
    assert store.get(Registry.model_key(version)) == b"run-1"
    assert store.get(Registry.card_text_key(version)) == b"# card"
    assert Registry.model_key(version, int8=True) == "models/gender/1/model_int8.onnx"
    assert registry.version_of_run("run-1") == version
    assert registry.version_of_run("run-2") is None


def test_versions_are_in_the_order_of_numbers_not_of_letters(registry: Registry, tmp_path: Path) -> None:
    for number in range(1, 12):
        register(registry, f"run-{number}", tmp_path)
    assert registry.versions() == list(range(1, 12))


def test_there_is_no_champion_before_the_first_promotion(registry: Registry) -> None:
    assert registry.aliases() == Aliases(None, None)
    assert registry.history() == []
    with pytest.raises(Conflict, match="there is no previous champion to roll back to"):
        registry.rollback("why not")


def test_a_promotion_makes_a_champion_and_remembers_the_one_before(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
    assert registry.promote(1, "first") == Aliases(1, None)
    with pytest.raises(Conflict, match="no previous champion"):
        registry.rollback("too early")
    assert registry.promote(2, "better") == registry.aliases() == Aliases(2, 1)
    assert [(entry["action"], entry["version"], entry["from"], entry["reason"]) for entry in registry.history()] == [
        ("promote", 1, None, "first"),
        ("promote", 2, 1, "better"),
    ]


def test_promoting_the_champion_again_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    assert registry.promote(2, "again") == Aliases(2, 1)
    assert len(registry.history()) == 2


def test_a_rollback_returns_to_the_champion_before_and_can_itself_be_rolled_back(
    registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    assert registry.rollback("worse in the field") == Aliases(1, 2)
    assert registry.history()[-1]["action"] == "rollback"
    assert registry.rollback("it was not") == Aliases(2, 1)


def test_a_rollback_to_a_version_that_is_gone_is_refused(store: FileStore, registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    store.delete("models/gender/1")
    with pytest.raises(NotFound, match="there is no model version 1; registered: 2"):
        registry.rollback("back")
    assert registry.aliases() == Aliases(2, 1)


def test_the_history_keeps_the_last_hundred(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
    for turn in range(105):
        registry.promote(turn % 2 + 1, f"turn {turn}")
    assert len(registry.history()) == 100
    assert registry.history()[-1]["reason"] == "turn 104"


def test_other_files_beside_the_versions_are_no_versions(store: FileStore, registry: Registry) -> None:
    store.put("models/gender/readme.txt", b"")
    assert registry.claim("run-1") == 1
