"""The entries of an archive by what a table may call them."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from typing import Final

from shared.archives.entry import Entry

_IMAGE_EXTENSIONS: Final = frozenset(
    ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "tif", "tiff", "pgm", "ppm", "avif", "heic", "heif", "chip"]
)
"""What a name may lack in a table, or have otherwise than there; `chip` as in UTKFace's `.jpg.chip.jpg`."""
_PARTS: Final = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval"])
"""Folders that number their files each from one."""


class EntryIndex:
    """Finds the entries that a table's rows name, however much of the path stands there.

    Args:
        entries: of the archive.
        any_folder: whether a name is enough where the folders differ, as the archive was packed elsewhere; the parts of
            a dataset, such as `train/` and `val/`, stay apart.
    """

    def __init__(self, entries: Sequence[Entry], *, any_folder: bool = False) -> None:
        self._any_folder = any_folder
        self._folders: list[str] = []
        self._by_base: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for index, entry in enumerate(entries):
            folder, _, base = fold_path(entry.name).rpartition("/")
            self._folders.append(folder)
            self._by_base[base].append(index)
            self._by_stem[_stem(base)].append(index)

    def find(self, value: str, table: str) -> list[int]:
        """Returns the entries that a value may name: none, one, or several that it does not tell apart.

        Args:
            value: a name or a path, with or without folders and extension.
            table: path of the table that it stands in. Where a name alone would be that of several entries, it is one
                in the table's folder, or else one in the folder that is called as the table is: `train/` beside
                `train.csv`.
        """
        folder, _, base = fold_path(value).rpartition("/")
        if not base:
            return []
        folders = self._folders
        found = self._by_base.get(base) or self._by_stem.get(_stem(base), [])
        near = [index for index in found if _ends_with(folders[index], folder) or _ends_with(folder, folders[index])]
        if not near and self._any_folder:
            near = [index for index in found if not _are_other_parts(folders[index], folder)]
        if len(near) < 2:
            return near
        beside, _, name = table.rpartition("/")
        for start in (beside, f"{beside}/{name.rpartition('.')[0]}".lstrip("/")):
            if inside := [index for index in near if folders[index] == f"{start}/{folder}".strip("/")]:
                return inside
        # A path with more folders than the archive has names the entry that has most of them.
        shared = max(min(len(folders[index]), len(folder)) for index in near)
        return [index for index in near if min(len(folders[index]), len(folder)) == shared]

    def names_whole(self, value: str) -> bool:
        """Returns whether a value is the name of an entry with its extension."""
        return fold_path(value).rpartition("/")[2] in self._by_base


def _ends_with(folder: str, other: str) -> bool:
    return not other or f"/{folder}".endswith(f"/{other}")


def _are_other_parts(folder: str, other: str) -> bool:
    parts, others = _PARTS.intersection(folder.split("/")), _PARTS.intersection(other.split("/"))
    return bool(parts and others) and parts != others


def has_image_extension(name: str) -> bool:
    """Returns whether a name ends as those of images do."""
    return name.strip().rpartition(".")[2].casefold() in _IMAGE_EXTENSIONS


def _stem(base: str) -> str:
    """Returns a name without the extensions of images; others belong to it, and so do the dots of initials."""
    stem, dot, extension = base.rpartition(".")
    while dot and stem and extension in _IMAGE_EXTENSIONS:
        base = stem
        stem, dot, extension = base.rpartition(".")
    return base


def fold_path(name: str) -> str:
    """Returns a path as paths are compared: with slashes, in lower case, accents composed, from the archive's root."""
    path = unicodedata.normalize("NFC", name).replace("\\", "/").strip().casefold()
    while path.startswith("./"):
        path = path[2:]
    return path.lstrip("/")
