"""What a dataset, a run or a model consists of, as one zip to carry away."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import IO, Final, Literal

from shared.errors import NotFound
from shared.records.registry import Registry
from shared.records.runs import Runs
from shared.store.base import Store

ExportKind = Literal["dataset", "run", "model"]
_NOT_EXPORTED: Final = frozenset(
    {"claim.json", "cancel", "checkpoint.pt", "sources.pt", "archive.zip", "faces.npy", "lease.json"}
)
"""What belongs to the services alone, or is large and was brought by the user."""
_PACKED_ALREADY: Final = (".onnx", ".png", ".jpg")


def write_export(store: Store, kind: ExportKind, which: str, target: IO[bytes]) -> None:
    """Writes the zip of a dataset (its tables), a run (with its model's card) or a model (with every variant).

    Args:
        store: where it lies.
        kind: what it is.
        which: its id; a model's is its version.
        target: where the zip goes.

    Raises:
        NotFound: there is no such thing.
    """
    entries = list(_entries(store, kind, which))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, key in entries:
            with store.local(key) as path:
                compression = zipfile.ZIP_STORED if name.endswith(_PACKED_ALREADY) else zipfile.ZIP_DEFLATED
                archive.write(path, name, compression)


def _entries(store: Store, kind: ExportKind, which: str) -> Iterator[tuple[str, str]]:
    """Yields (name in the zip, key in the store)."""
    if kind == "model":
        if not which.isdecimal():
            raise NotFound(f"there is no model {which!r}")
        yield from _model_entries(store, int(which))
        return
    root = f"{kind}s/{which}"
    names = [name for name in store.children(f"{kind}s") if name == which] and store.children(root)
    if not names:
        raise NotFound(f"there is no {kind} {which!r}")
    for name in names:
        if name in _NOT_EXPORTED:
            continue
        if store.exists(f"{root}/{name}"):
            yield name, f"{root}/{name}"
        elif name in {"predictions", "edits"}:
            yield from ((f"{name}/{part}", f"{root}/{name}/{part}") for part in store.children(f"{root}/{name}"))
    if kind == "run" and (model := Runs(store).get(which).model):
        for key in (Registry.card_key(model.version), Registry.card_text_key(model.version)):
            if store.exists(key):
                yield f"model-{model.version}/{key.rpartition('/')[2]}", key


def _model_entries(store: Store, version: int) -> Iterator[tuple[str, str]]:
    card = Registry.card_key(version)
    if not store.exists(card):
        raise NotFound(f"there is no model version {version}")
    root = card.rpartition("/")[0]
    for name in store.children(root):
        if name not in _NOT_EXPORTED:
            yield name, f"{root}/{name}"
