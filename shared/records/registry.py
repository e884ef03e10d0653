"""The model registry: numbered versions of one model, and aliases that say which of them serves.

A version is claimed first (an atomic `create`, so two trainers never share a number), then its files are written, and
last its `card.json`, which makes it visible. Registering the same run again gives the same version.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from shared.clock import now_iso
from shared.errors import Conflict, NotFound
from shared.records.model_card import ServedPrecision
from shared.store.base import Store

MODEL_NAME: Final = "gender"
_ROOT: Final = f"models/{MODEL_NAME}"
_HISTORY_KEPT: Final = 100


@dataclass(frozen=True, slots=True)
class Aliases:
    """Which versions are in use.

    Attributes:
        champion: the one that serves.
        previous: what a rollback returns to.
        challenger: what shadows the champion where `GENDERLINE_SHADOW_SHARE` says so; its answers reach nobody.
    """

    champion: int | None = None
    previous: int | None = None
    challenger: int | None = None


class Registry:
    """The versions of the model `gender` in a store.

    Args:
        store: where they lie, under `models/gender/`.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    # -- reading

    def versions(self) -> list[int]:
        """Returns all registered versions, oldest first."""
        return [version for version in self._numbered() if self._store.exists(f"{_ROOT}/{version}/card.json")]

    def card(self, version: int) -> dict[str, Any]:
        """Returns a version's card, or raises `NotFound`."""
        card = self._store.find_json(f"{_ROOT}/{version}/card.json")
        if card is None:
            known = ", ".join(map(str, self.versions())) or "none"
            raise NotFound(f"there is no model version {version}; registered: {known}")
        return card

    def aliases(self) -> Aliases:
        """Returns which versions are in use now."""
        return _aliases(self._store.find_json(f"{_ROOT}/aliases.json") or {})

    def history(self) -> list[dict[str, Any]]:
        """Returns what became of the aliases, newest last: `{"at", "action", "version", "from", "reason", "by"}`.

        `action` is `promote`, `rollback`, `challenge` or `dismiss`; with the last two `from` is null. `by` is the name
        of the access token that somebody came with, and null where none was asked for.
        """
        return list((self._store.find_json(f"{_ROOT}/aliases.json") or {}).get("history", []))

    def version_of_run(self, run_id: str) -> int | None:
        """Returns the version that a run was registered as, or None."""
        for version in reversed(self.versions()):
            if self.card(version).get("run_id") == run_id:
                return version
        return None

    @staticmethod
    def model_file(precision: ServedPrecision = "float32") -> str:
        """Returns the name of an ONNX file in its version's folder."""
        return "model.onnx" if precision == "float32" else f"model_{precision}.onnx"

    @staticmethod
    def model_key(version: int, precision: ServedPrecision = "float32") -> str:
        """Returns the store key of a version's ONNX file."""
        return f"{_ROOT}/{version}/{Registry.model_file(precision)}"

    @staticmethod
    def card_text_key(version: int) -> str:
        """Returns the store key of a version's card for people."""
        return f"{_ROOT}/{version}/card.md"

    @staticmethod
    def shadow_key(version: int) -> str:
        """Returns the store key of how a version does as a challenger."""
        return f"{_ROOT}/{version}/shadow.json"

    # -- writing

    def claim(self, run_id: str) -> int:
        """Reserves a version number for a run; the same run gets the same number again."""
        newest = 0
        for version in self._numbered():
            owner = self._claimant(version)
            if owner == run_id:
                return version
            # A folder alone is no claim: somebody is just making one, and may be of the same run.
            if owner is not None or self._store.exists(f"{_ROOT}/{version}/card.json"):
                newest = version
        version = newest + 1
        content = json.dumps({"run_id": run_id}).encode()
        while not self._store.create(f"{_ROOT}/{version}/claim.json", content):
            if self._claimant(version) == run_id:
                break
            version += 1
        return version

    def register(self, version: int, card: dict[str, Any], card_text: str, files: dict[str, Path]) -> None:
        """Writes a claimed version's files and makes it visible.

        Args:
            version: the number that `claim` gave.
            card: what `card.json` will hold.
            card_text: the same for people, `card.md`.
            files: local files by their names in the version's folder; they are moved into the store.
        """
        for name, path in files.items():
            self._store.put_file(f"{_ROOT}/{version}/{name}", path)
        self._store.put(self.card_text_key(version), card_text.encode())
        self._store.put_json(f"{_ROOT}/{version}/card.json", card)

    def promote(self, version: int, reason: str, *, user: str | None = None) -> Aliases:
        """Makes `version` the champion, by `user`. Promoting the champion again changes nothing.

        Raises:
            NotFound: there is no such version.
        """
        self.card(version)

        def change(now: dict[str, Any]) -> dict[str, Any]:
            before = now.get("champion")
            if before == version:
                return now
            return _changed(now, "promote", version, before, reason, user)

        return _aliases(self._store.update_json(f"{_ROOT}/aliases.json", change))

    def promote_over(self, champion: int | None, version: int, reason: str) -> bool:
        """Makes `version` the champion if that is still `champion`, which it was compared to.

        Returns:
            Whether it is the champion now.

        Raises:
            NotFound: there is no such version.
        """
        self.card(version)

        def change(now: dict[str, Any]) -> dict[str, Any]:
            if now.get("champion") != champion or champion == version:
                return now
            return _changed(now, "promote", version, champion, reason)

        return bool(self._store.update_json(f"{_ROOT}/aliases.json", change).get("champion") == version)

    def rollback(self, reason: str, *, user: str | None = None) -> Aliases:
        """Makes the previous champion the champion again, by `user`.

        Raises:
            Conflict: there is no previous champion.
            NotFound: its version is no longer there.
        """

        def change(now: dict[str, Any]) -> dict[str, Any]:
            champion, previous = now.get("champion"), now.get("previous")
            if previous is None:
                raise Conflict("there is no previous champion to roll back to")
            self.card(previous)
            return _changed(now, "rollback", previous, champion, reason, user)

        return _aliases(self._store.update_json(f"{_ROOT}/aliases.json", change))

    def challenge(
        self, version: int, reason: str, *, by: Literal["hand", "gate"] = "hand", user: str | None = None
    ) -> Aliases:
        """Makes `version` the challenger, in place of any other.

        The gate leaves things as they are where a person chose the challenger, or where `version` already serves.

        Raises:
            NotFound: there is no such version.
            Conflict: it is the champion, or there is none.
        """
        self.card(version)

        def change(now: dict[str, Any]) -> dict[str, Any]:
            champion, challenger = now.get("champion"), now.get("challenger")
            chosen = challenger is not None and now.get("challenged_by") == "hand"
            if by == "gate" and (chosen or champion == version):
                return now
            if champion is None:
                raise Conflict(f"there is no champion to challenge; promote version {version} instead")
            if champion == version:
                raise Conflict(f"version {version} is the champion; expected another one as its challenger")
            alias = {"challenger": version, "challenged_by": by}
            if challenger == version:
                return {**now, **alias}
            return {**now, **alias, "history": _with_entry(now, "challenge", version, None, reason, user)}

        return _aliases(self._store.update_json(f"{_ROOT}/aliases.json", change))

    def dismiss(self, reason: str, version: int | None = None, *, user: str | None = None) -> int:
        """Takes the challenger's alias away and returns its version.

        Raises:
            Conflict: there is no challenger, or it is not `version`, where one is given.
        """
        dismissed = 0

        def change(now: dict[str, Any]) -> dict[str, Any]:
            nonlocal dismissed
            challenger = now.get("challenger")
            if challenger is None:
                raise Conflict("there is no challenger")
            if version not in {None, challenger}:
                raise Conflict(f"version {version} is not the challenger; version {challenger} is")
            dismissed = challenger
            history = _with_entry(now, "dismiss", challenger, None, reason, user)
            return {**now, "challenger": None, "challenged_by": None, "history": history}

        self._store.update_json(f"{_ROOT}/aliases.json", change)
        return dismissed

    def _numbered(self) -> list[int]:
        return sorted(int(name) for name in self._store.children(_ROOT) if name.isdecimal())

    def _claimant(self, version: int) -> str | None:
        """Returns the run that a version is reserved for, if it is."""
        claim = self._store.find_json(f"{_ROOT}/{version}/claim.json")
        return None if claim is None else str(claim["run_id"])


def _aliases(content: dict[str, Any]) -> Aliases:
    return Aliases(content.get("champion"), content.get("previous"), content.get("challenger"))


def _changed(
    now: dict[str, Any], action: str, champion: int, before: int | None, reason: str, user: str | None = None
) -> dict[str, Any]:
    """Returns the aliases with another champion.

    A challenger that a person chose stays; one that the gate set was declined in favour of a champion that is no more.
    """
    challenger = now.get("challenger")
    stays = now.get("challenged_by") == "hand" and challenger != champion
    return {
        "champion": champion,
        "previous": before,
        "challenger": challenger if stays else None,
        "challenged_by": "hand" if stays else None,
        "history": _with_entry(now, action, champion, before, reason, user),
    }


def _with_entry(
    now: dict[str, Any], action: str, version: int, before: int | None, reason: str, user: str | None
) -> list[Any]:
    entry = {"at": now_iso(), "action": action, "version": version, "from": before, "reason": reason, "by": user}
    return [*now.get("history", []), entry][-_HISTORY_KEPT:]
