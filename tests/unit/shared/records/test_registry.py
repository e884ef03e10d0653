from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import Conflict, NotFound
from shared.records.record import DamagedRecord
from shared.records.registry import Aliases, Registry
from shared.store.files import FileStore
from tests.support.builders.cards import card_of
from tests.support.store_process import race


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
    registry.register(card_of(version, run_id, run_id.encode()), "# card", {"model.onnx": model})
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


def test_a_version_deleted_but_for_its_claim_is_gone_and_its_number_not_given_again(
    store: FileStore, registry: Registry, tmp_path: Path
) -> None:
    assert [register(registry, run_id, tmp_path) for run_id in ("run-1", "run-2")] == [1, 2]
    for name in store.children("models/gender/2"):
        if name != "claim.json":
            store.delete(f"models/gender/2/{name}")
    assert registry.versions() == [1]
    assert registry.claim("run-3") == 3


@pytest.mark.parametrize("damage", ["missing", "cut short", "another file"])
def test_a_version_that_is_not_whole_is_refused_whatever_it_shall_become(
    store: FileStore, registry: Registry, tmp_path: Path, damage: str
) -> None:
    for run_id in ("run-1", "run-2"):
        registry.promote(register(registry, run_id, tmp_path), "good")
    broken = register(registry, "run-3", tmp_path)
    before = registry.aliases()
    for version in (1, broken):
        key = Registry.model_key(version)
        if damage == "missing":
            store.delete(key)
        else:
            store.put(key, b"run" if damage == "cut short" else b"run-4")
    said = (
        "it is missing" if damage == "missing" else f"found {3 if damage == 'cut short' else 5} bytes with the SHA-256"
    )
    for attempt in (
        lambda: registry.promote(broken, "by hand"),
        lambda: registry.promote_over(2, broken, "by the gate"),
        lambda: registry.challenge(broken, "by hand"),
        lambda: registry.rollback("to the first"),
    ):
        with pytest.raises(DamagedRecord, match=f"model.onnx in the store is damaged: {said}"):
            attempt()
    assert registry.aliases() == before


def test_a_registered_version_has_its_card_and_files(store: FileStore, registry: Registry, tmp_path: Path) -> None:
    version = register(registry, "run-1", tmp_path)
    assert registry.card(version).run_id == "run-1"
    assert store.get(Registry.model_key(version)) == b"run-1"
    assert store.get(Registry.card_text_key(version)) == b"# card"
    assert Registry.model_key(version, "int8") == "models/gender/1/model_int8.onnx"
    assert registry.version_of_run("run-1") == version
    assert registry.version_of_run("run-2") is None


def test_versions_are_in_the_order_of_numbers_not_of_letters(registry: Registry, tmp_path: Path) -> None:
    for number in range(1, 12):
        register(registry, f"run-{number}", tmp_path)
    assert registry.versions() == list(range(1, 12))


def test_there_is_no_champion_before_the_first_promotion(registry: Registry) -> None:
    assert registry.aliases() == Aliases()
    assert registry.history() == []
    with pytest.raises(Conflict, match="there is no previous champion to roll back to"):
        registry.rollback("why not")


def test_a_promotion_makes_a_champion_and_remembers_the_one_before(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
    assert registry.promote(1, "first") == Aliases(champion=1)
    with pytest.raises(Conflict, match="no previous champion"):
        registry.rollback("too early")
    assert registry.promote(2, "better") == registry.aliases() == Aliases(champion=2, previous=1)
    assert [(entry.action, entry.version, entry.from_version, entry.reason) for entry in registry.history()] == [
        ("promote", 1, None, "first"),
        ("promote", 2, 1, "better"),
    ]


def test_promoting_the_champion_again_changes_nothing(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    assert registry.promote(2, "again") == Aliases(champion=2, previous=1)
    assert len(registry.history()) == 2


def test_a_rollback_returns_to_the_champion_before_and_can_itself_be_rolled_back(
    registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    assert registry.rollback("worse in the field") == Aliases(champion=1, previous=2)
    assert registry.history()[-1].action == "rollback"
    assert registry.rollback("it was not") == Aliases(champion=2, previous=1)


def test_a_rollback_to_another_version_than_expected_is_refused(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    with pytest.raises(Conflict, match="the previous champion is version 2 now; expected version 1"):
        registry.rollback("worse", expected=1)
    assert registry.aliases() == Aliases(champion=3, previous=2)
    assert registry.rollback("worse", expected=2) == Aliases(champion=2, previous=3)


def test_a_rollback_to_a_version_that_is_gone_is_refused(store: FileStore, registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
        registry.promote(number, "next")
    store.delete("models/gender/1")
    with pytest.raises(NotFound, match="there is no model version 1; registered: 2"):
        registry.rollback("back")
    assert registry.aliases() == Aliases(champion=2, previous=1)


def test_the_history_keeps_the_last_hundred(registry: Registry, tmp_path: Path) -> None:
    for number in (1, 2):
        register(registry, f"run-{number}", tmp_path)
    for turn in range(105):
        registry.promote(turn % 2 + 1, f"turn {turn}")
    assert len(registry.history()) == 100
    assert registry.history()[-1].reason == "turn 104"


def test_other_files_beside_the_versions_are_no_versions(store: FileStore, registry: Registry) -> None:
    store.put("models/gender/readme.txt", b"")
    assert registry.claim("run-1") == 1


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> Registry:
    """Three versions, of which the first is champion."""
    for number in (1, 2, 3):
        register(registry, f"run-{number}", tmp_path)
    registry.promote(1, "first")
    return registry


def test_a_challenger_is_another_version_than_the_champion_and_leaves_with_its_dismissal(three: Registry) -> None:
    assert three.challenge(2, "faster") == three.aliases() == Aliases(champion=1, challenger=2)
    assert three.challenge(3, "faster still") == three.challenge(3, "again") == Aliases(champion=1, challenger=3)
    with pytest.raises(Conflict, match="version 1 is the champion; expected another one as its challenger"):
        three.challenge(1, "itself")
    with pytest.raises(NotFound, match="no model version 9"):
        three.challenge(9, "nobody")
    with pytest.raises(Conflict, match="version 2 is not the challenger; version 3 is"):
        three.dismiss("mixed up", 2)
    assert three.dismiss("slow") == 3
    with pytest.raises(Conflict, match="there is no challenger"):
        three.dismiss("slow")
    assert three.aliases() == Aliases(champion=1)
    assert [(entry.action, entry.version, entry.reason) for entry in three.history()[1:]] == [
        ("challenge", 2, "faster"),
        ("challenge", 3, "faster still"),
        ("dismiss", 3, "slow"),
    ]


def test_without_a_champion_there_is_nobody_to_challenge(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, "run-1", tmp_path)
    with pytest.raises(Conflict, match="no champion to challenge; promote version 1 instead"):
        registry.challenge(version, "why not")


def test_the_gate_names_its_newest_challenger_and_leaves_one_alone_that_a_person_chose(three: Registry) -> None:
    assert three.challenge(2, "gate: no better", by="gate").challenger == 2
    assert three.challenge(3, "gate: no better", by="gate").challenger == 3
    assert three.challenge(2, "I want to know").challenger == 2
    assert three.challenge(3, "gate: no better", by="gate").challenger == 2
    three.dismiss("seen enough")
    assert three.challenge(1, "gate: it serves by now", by="gate") == Aliases(champion=1)


def test_a_new_champion_keeps_the_challenger_that_a_person_chose_only(three: Registry) -> None:
    three.challenge(2, "I want to know")
    assert three.promote(3, "better") == Aliases(champion=3, previous=1, challenger=2)
    assert three.rollback("worse") == Aliases(champion=1, previous=3, challenger=2)
    assert three.promote(2, "it won") == Aliases(champion=2, previous=1)
    three.challenge(3, "gate: no better", by="gate")
    assert three.rollback("worse") == Aliases(champion=1, previous=2)


def test_a_card_of_the_release_before_is_called_that(store: FileStore, registry: Registry, tmp_path: Path) -> None:
    register(registry, "run-1", tmp_path)
    card = store.get_json(Registry.card_key(1))
    del card["variants"]
    store.put_json(Registry.card_key(1), card | {"int8": None, "int8_file": None})
    with pytest.raises(DamagedRecord, match=r"card.json .*: written by Genderline 0.1.0, .* train again"):
        registry.card(1)


def test_a_damaged_card_is_named_and_costs_the_list_nothing_else(
    store: FileStore, registry: Registry, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        register(registry, f"run-{number}", tmp_path)
    for content in (b"", b"{half a card", b'{"name": "gender"}', store.get(Registry.card_key(3))):
        store.put(Registry.card_key(2), content)
        found = registry.cards()
        assert [card.version for card in found.records] == [3, 1]
        assert [(damage.key, damage.record_id) for damage in found.damaged] == [(Registry.card_key(2), "2")]
        for change in (registry.card, lambda version: registry.promote(version, "a test")):
            with pytest.raises(DamagedRecord, match=r"models/gender/2/card\.json"):
                change(2)
    assert registry.promote(3, "a test").champion == 3
    assert [registry.version_of_run(f"run-{number}") for number in (1, 2, 3)] == [1, 2, 3]


def test_a_damaged_file_of_aliases_is_named_and_never_written_over(
    store: FileStore, registry: Registry, tmp_path: Path
) -> None:
    register(registry, "run-1", tmp_path)
    for content in (b"", b"[]", b'{"champion": "one"}'):
        store.put("models/gender/aliases.json", content)
        aliases, (damage,) = registry.find_aliases()
        assert (aliases, damage.key) == (Aliases(), "models/gender/aliases.json")
        ask: Callable[[], object]
        for ask in (
            registry.aliases,
            registry.history,
            lambda: registry.promote(1, "a test"),
            lambda: registry.rollback("a test"),
            lambda: registry.dismiss("a test"),
        ):
            with pytest.raises(DamagedRecord, match=r"models/gender/aliases\.json"):
                ask()
        assert store.get("models/gender/aliases.json") == content
    store.delete("models/gender/aliases.json")
    assert registry.promote(1, "a test").champion == 1
