"""The model registry: numbered versions of one model, and aliases that say which of them serves.

A version is claimed first (an atomic `create`, so two trainers never share a number), then its files are written, and
last its `card.json`, which makes it visible. Registering the same run again gives the same version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from shared.clock import now_iso
from shared.errors import Conflict, NotFound
from shared.records.model_card import CardFile, ModelCard, ServedPrecision
from shared.records.record import (
    DamagedRecord,
    Listing,
    StoredModel,
    Timestamp,
    change_record,
    find_record,
    list_records,
)
from shared.store.base import Store

MODEL_NAME: Final = "gender"
_ROOT: Final = f"models/{MODEL_NAME}"
_ALIASES_KEY: Final = f"{_ROOT}/aliases.json"
WEIGHTS_FILE: Final = "weights.npz"
START_SEEN_FILE: Final = "start_seen.npy"
_CLAIM: Final = "claim.json"
_HISTORY_KEPT: Final = 100


class Aliases(StoredModel):
    """Which versions are in use.

    Attributes:
        champion: the one that serves.
        previous: what a rollback returns to.
        challenger: what shadows the champion where `GENDERLINE_SHADOW_SHARE` says so; its answers reach nobody.
    """

    champion: int | None = None
    previous: int | None = None
    challenger: int | None = None


class AliasChange(StoredModel):
    """An entry of the aliases' history.

    Attributes:
        at: when, ISO 8601 in UTC.
        action: what was done.
        version: to which version.
        from_version: the champion before; None where there was none, and with `challenge` and `dismiss`.
        reason: why, as the person or the gate put it.
        by: the name of the access token that somebody came with; None where none was asked for.
    """

    at: Timestamp
    action: Literal["promote", "rollback", "challenge", "dismiss"]
    version: int
    from_version: int | None = Field(alias="from")
    reason: str
    by: str | None = None


class _AliasesFile(Aliases):
    """`aliases.json`.

    Attributes:
        challenged_by: whether a person or the gate chose the challenger; None where there is none.
        history: what became of the aliases, newest last.
    """

    challenged_by: Literal["hand", "gate"] | None = None
    history: list[AliasChange] = Field(default_factory=list)

    def aliases(self) -> Aliases:
        return Aliases(champion=self.champion, previous=self.previous, challenger=self.challenger)

    def with_champion(
        self, action: Literal["promote", "rollback"], version: int, reason: str, user: str | None
    ) -> _AliasesFile:
        """Returns the aliases with another champion.

        A challenger that a person chose stays; one that the gate set was declined in favour of a champion that is no
        more.
        """
        stays = self.challenged_by == "hand" and self.challenger != version
        return self.changed(
            champion=version,
            previous=self.champion,
            challenger=self.challenger if stays else None,
            challenged_by="hand" if stays else None,
            history=self._history_with(action, version, self.champion, reason, user),
        )

    def with_challenger(self, version: int, by: Literal["hand", "gate"], reason: str, user: str | None) -> _AliasesFile:
        """Returns the aliases with another challenger."""
        history = (
            self.history if self.challenger == version else self._history_with("challenge", version, None, reason, user)
        )
        return self.changed(challenger=version, challenged_by=by, history=history)

    def without_challenger(self, reason: str, user: str | None) -> _AliasesFile:
        """Returns the aliases without a challenger, which must be there."""
        assert self.challenger is not None  # noqa: S101 - the caller has looked
        history = self._history_with("dismiss", self.challenger, None, reason, user)
        return self.changed(challenger=None, challenged_by=None, history=history)

    def _history_with(
        self, action: str, version: int, before: int | None, reason: str, user: str | None
    ) -> list[dict[str, Any]]:
        entry = {"at": now_iso(), "action": action, "version": version, "from": before, "reason": reason, "by": user}
        return [*(change.as_dict() for change in self.history), entry][-_HISTORY_KEPT:]


class Refusal(StoredModel):
    """`refused.json`: why no worker serves a version.

    Attributes:
        at: since when, ISO 8601 in UTC.
        reason: for people.
    """

    at: Timestamp
    reason: str


class _Claim(StoredModel):
    """`claim.json`: the run that a version is reserved for."""

    run_id: str


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
        return sorted(int(name) for name in self._store.folders_with(_ROOT, "card.json") if name.isdecimal())

    def card(self, version: int) -> ModelCard:
        """Returns a version's card.

        Raises:
            NotFound: there is no such version.
            DamagedRecord: its card cannot be read, or is that of another version.
        """
        try:
            card = find_record(self._store, self.card_key(version), ModelCard)
        except DamagedRecord as error:
            raise self._name_earlier_release(error) from None
        if card is None:
            known = ", ".join(map(str, self.versions())) or "none"
            raise NotFound(f"there is no model version {version}; registered: {known}")
        if card.version != version:
            raise DamagedRecord(self.card_key(version), f"found the card of version {card.version}")
        return card

    def _name_earlier_release(self, error: DamagedRecord) -> DamagedRecord:
        """Returns the error in the words that help where the card is whole, and of release 0.1.0."""
        with contextlib.suppress(ValueError):  # it is no JSON
            card = self._store.find_json(error.key)
            if isinstance(card, dict) and "int8_file" in card and "variants" not in card:
                reason = "written by Genderline 0.1.0, whose models this release does not read; train again"
                return DamagedRecord(error.key, reason)
        return error

    def require_whole(self, version: int) -> ModelCard:
        """Returns a version's card, once every file is the one that the card describes.

        Raises:
            NotFound: there is no such version.
            DamagedRecord: its card cannot be read, or one of its files is missing, cut short or another one.
        """
        card = self.card(version)
        files: dict[ServedPrecision, CardFile | None] = {"float32": card.file}
        files |= {precision: variant.file for precision, variant in card.variants.items()}
        for precision, expected in files.items():
            if expected is None:
                continue
            key = self.model_key(version, precision)
            try:
                data = self._store.get(key)
            except NotFound:
                raise DamagedRecord(key, "it is missing") from None
            if (found := hashlib.sha256(data).hexdigest()) != expected.sha256:
                raise DamagedRecord(
                    key,
                    f"found {len(data)} bytes with the SHA-256 {found}, expected {expected.size_bytes} bytes with "
                    f"{expected.sha256}, as the card says",
                )
        return card

    def cards(self) -> Listing[ModelCard]:
        """Returns every version's card, newest first, and what is wrong with those that cannot be read."""
        return self.page()

    def page(
        self,
        limit: int | None = None,
        offset: int = 0,
        find: Callable[[int], ModelCard] | None = None,
        only: Container[int] | None = None,
    ) -> Listing[ModelCard]:
        """Returns some versions' cards, newest first, and what is wrong with those that cannot be read.

        Args:
            limit: the most cards; None for all.
            offset: how many newer ones to pass over.
            find: returns the card of a version, in place of `self.card`.
            only: the versions that count; None for all.
        """
        versions = [version for version in self.versions()[::-1] if only is None or version in only]
        found = list_records(versions[offset:][:limit], find or self.card)
        return Listing(found.records, found.damaged, len(versions))

    def aliases(self) -> Aliases:
        """Returns which versions are in use now, or raises `DamagedRecord`."""
        return self._read_aliases().aliases()

    def find_aliases(self) -> tuple[Aliases, list[DamagedRecord]]:
        """Returns which versions are in use now, and what is wrong with the file that says so: then none is known."""
        try:
            return self.aliases(), []
        except DamagedRecord as error:
            return Aliases(), [error]

    def history(self) -> list[AliasChange]:
        """Returns what became of the aliases, newest last, or raises `DamagedRecord`."""
        return self._read_aliases().history

    def version_of_run(self, run_id: str) -> int | None:
        """Returns the version that a run was registered as, or None."""
        for version in reversed(self.versions()):
            if self._claimant(version) == run_id:
                return version
        return None

    @staticmethod
    def card_key(version: int) -> str:
        """Returns the store key of a version's card."""
        return f"{_ROOT}/{version}/card.json"

    @staticmethod
    def model_file(precision: ServedPrecision = "float32") -> str:
        """Returns the name of an ONNX file in its version's folder."""
        return "model.onnx" if precision == "float32" else f"model_{precision}.onnx"

    @staticmethod
    def model_key(version: int, precision: ServedPrecision = "float32") -> str:
        """Returns the store key of a version's ONNX file."""
        return f"{_ROOT}/{version}/{Registry.model_file(precision)}"

    @staticmethod
    def weights_key(version: int) -> str:
        """Returns the store key of a version's weights, from which training can begin."""
        return f"{_ROOT}/{version}/{WEIGHTS_FILE}"

    @staticmethod
    def start_seen_key(version: int) -> str:
        """Returns the store key of the hashes of the faces that a version's start has seen, where it was a file."""
        return f"{_ROOT}/{version}/{START_SEEN_FILE}"

    @staticmethod
    def card_text_key(version: int) -> str:
        """Returns the store key of a version's card for people."""
        return f"{_ROOT}/{version}/card.md"

    @staticmethod
    def shadow_key(version: int) -> str:
        """Returns the store key of how a version does as a challenger."""
        return f"{_ROOT}/{version}/shadow.json"

    def refusal(self, version: int) -> Refusal | None:
        """Returns why no worker serves a version; None where nothing is known against it, or raises `DamagedRecord`."""
        return find_record(self._store, self._refusal_key(version), Refusal)

    def refusals(self, versions: Iterable[int]) -> dict[int, str]:
        """Returns why no worker serves a version, of those that are refused."""
        found = {}
        refused = set(self._store.folders_with(_ROOT, "refused.json"))
        for version in versions:
            if str(version) not in refused:
                continue
            try:
                refusal = self.refusal(version)
            except DamagedRecord as error:
                found[version] = str(error)
            else:
                if refusal is not None:
                    found[version] = refusal.reason
        return found

    @staticmethod
    def _refusal_key(version: int) -> str:
        return f"{_ROOT}/{version}/refused.json"

    # -- writing

    def refuse(self, version: int, reason: str) -> None:
        """Keeps every worker from serving a version, also after a restart, until a person promotes it again."""
        self._store.put_json(self._refusal_key(version), Refusal(at=now_iso(), reason=reason).as_dict())

    def claim(self, run_id: str) -> int:
        """Reserves a version number for a run; the same run gets the same number again."""
        newest = 0
        for version in self._numbered():
            owner = self._claimant(version)
            if owner == run_id:
                return version
            # A folder alone is no claim: somebody is just making one, and may be of the same run.
            if owner is not None or self._store.exists(self.card_key(version)):
                newest = version
        version = newest + 1
        content = json.dumps({"run_id": run_id}).encode()
        while not self._store.create(f"{_ROOT}/{version}/{_CLAIM}", content):
            if self._claimant(version) == run_id:
                break
            version += 1
        return version

    def register(self, card: ModelCard, card_text: str, files: dict[str, Path]) -> None:
        """Writes a claimed version's files and makes it visible.

        Args:
            card: what `card.json` will hold; its version is the number that `claim` gave.
            card_text: the same for people, `card.md`.
            files: local files by their names in the version's folder; they are moved into the store.
        """
        for name, path in files.items():
            self._store.put_file(f"{_ROOT}/{card.version}/{name}", path)
        self._store.put(self.card_text_key(card.version), card_text.encode())
        self._store.put_json(self.card_key(card.version), card.as_dict())

    def delete(self, version: int) -> None:
        """Deletes a version's files. Its claim stays, so that no other model ever gets its number."""
        self._store.delete(self.card_key(version))  # first, so that nobody finds a version without its files
        for name in self._store.children(f"{_ROOT}/{version}"):
            if name != _CLAIM:
                self._store.delete(f"{_ROOT}/{version}/{name}")

    def promote(self, version: int, reason: str, *, user: str | None = None) -> Aliases:
        """Makes `version` the champion, by `user`. Promoting the champion again changes nothing.

        One that was refused for its deaths is tried again.

        Raises:
            NotFound: there is no such version.
            DamagedRecord: it is not whole (see `require_whole`), or the file of the aliases cannot be read.
        """
        self.require_whole(version)
        self._store.delete(self._refusal_key(version))

        def change(now: _AliasesFile) -> _AliasesFile | None:
            return None if now.champion == version else now.with_champion("promote", version, reason, user)

        return self._change_aliases(change)

    def promote_over(self, champion: int | None, version: int, reason: str) -> bool:
        """Makes `version` the champion if that is still `champion`, which it was compared to.

        Returns:
            Whether it is the champion now.

        Raises:
            NotFound: there is no such version.
            DamagedRecord: as `promote` does.
        """
        self.require_whole(version)

        def change(now: _AliasesFile) -> _AliasesFile | None:
            if now.champion != champion or champion == version:
                return None
            return now.with_champion("promote", version, reason, None)

        return self._change_aliases(change).champion == version

    def rollback(self, reason: str, *, expected: int | None = None, user: str | None = None) -> Aliases:
        """Makes the previous champion the champion again, by `user`.

        Raises:
            Conflict: there is no previous champion, or it is not `expected`, where one is given.
            NotFound: its version is no longer there.
            DamagedRecord: as `promote` does.
        """

        def change(now: _AliasesFile) -> _AliasesFile:
            if now.previous is None:
                raise Conflict("there is no previous champion to roll back to")
            if expected is not None and now.previous != expected:
                raise Conflict(
                    f"the previous champion is version {now.previous} now; expected version {expected}. Nothing was "
                    "changed"
                )
            self.require_whole(now.previous)
            return now.with_champion("rollback", now.previous, reason, user)

        return self._change_aliases(change)

    def challenge(
        self, version: int, reason: str, *, by: Literal["hand", "gate"] = "hand", user: str | None = None
    ) -> Aliases:
        """Makes `version` the challenger, in place of any other.

        The gate leaves things as they are where a person chose the challenger, or where `version` already serves.

        Raises:
            NotFound: there is no such version.
            Conflict: it is the champion, or there is none.
            DamagedRecord: as `promote` does.
        """
        self.require_whole(version)

        def change(now: _AliasesFile) -> _AliasesFile | None:
            chosen = now.challenger is not None and now.challenged_by == "hand"
            if by == "gate" and (chosen or now.champion == version):
                return None
            if now.champion is None:
                raise Conflict(f"there is no champion to challenge; promote version {version} instead")
            if now.champion == version:
                raise Conflict(f"version {version} is the champion; expected another one as its challenger")
            return now.with_challenger(version, by, reason, user)

        return self._change_aliases(change)

    def dismiss(self, reason: str, version: int | None = None, *, user: str | None = None) -> int:
        """Takes the challenger's alias away and returns its version.

        Raises:
            Conflict: there is no challenger, or it is not `version`, where one is given.
            DamagedRecord: the file of the aliases cannot be read.
        """
        dismissed = 0

        def change(now: _AliasesFile) -> _AliasesFile:
            nonlocal dismissed
            if now.challenger is None:
                raise Conflict("there is no challenger")
            if version not in {None, now.challenger}:
                raise Conflict(f"version {version} is not the challenger; version {now.challenger} is")
            dismissed = now.challenger
            return now.without_challenger(reason, user)

        self._change_aliases(change)
        return dismissed

    # -- how

    def _read_aliases(self) -> _AliasesFile:
        return find_record(self._store, _ALIASES_KEY, _AliasesFile) or _AliasesFile()

    def _change_aliases(self, change: Callable[[_AliasesFile], _AliasesFile | None]) -> Aliases:
        """Replaces the aliases by what `change` makes of them, in one atomic step; None leaves them as they are."""

        def change_file(now: _AliasesFile | None) -> _AliasesFile | None:
            before = now or _AliasesFile()
            return change(before) or (None if now else before)

        return change_record(self._store, _ALIASES_KEY, _AliasesFile, change_file).aliases()

    def _numbered(self) -> list[int]:
        return sorted(int(name) for name in self._store.children(_ROOT) if name.isdecimal())

    def _claimant(self, version: int) -> str | None:
        """Returns the run that a version is reserved for, if it is."""
        claim = find_record(self._store, f"{_ROOT}/{version}/{_CLAIM}", _Claim)
        return None if claim is None else claim.run_id
