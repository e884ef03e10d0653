"""The entries of an archive by what a table may call them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from shared.archives.entry import Entry


class EntryIndex:
    """Finds the entries that a table's rows name, however much of the path stands there."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._paths = [fold_path(entry.name) for entry in entries]
        self._paths_without_extension = [_without_extension(path) for path in self._paths]
        self._by_base: dict[str, list[int]] = defaultdict(list)
        self._by_stem: dict[str, list[int]] = defaultdict(list)
        for index, path in enumerate(self._paths):
            base = path.rpartition("/")[2]
            self._by_base[base].append(index)
            self._by_stem[base.partition(".")[0]].append(index)

    def find(self, value: str, table: str) -> int | None:
        """Returns the entry that a value names, None where there is none or more than one.

        Args:
            value: a name or a path, with or without folders and extension.
            table: path of the table that it stands in. Where a name alone would be that of several entries, it is one
                in the table's folder, or else one in the folder that is called as the table is: `train/` beside
                `train.csv`.
        """
        path = fold_path(value)
        if not path:
            return None
        base = path.rpartition("/")[2]
        same_base = self._by_base.get(base)
        found = same_base or self._by_stem.get(base.partition(".")[0], [])
        if len(found) < 2:
            return found[0] if found else None
        paths = self._paths
        if not same_base:
            path, paths = _without_extension(path), self._paths_without_extension
        folder, _, name = table.rpartition("/")
        for start in (folder, f"{folder}/{name.rpartition('.')[0]}"):
            inside = [index for index in found if paths[index] == f"{start}/{path}".lstrip("/")]
            if inside:
                break
        else:
            inside = [index for index in found if f"/{paths[index]}".endswith(f"/{path}")]
        return inside[0] if len(inside) == 1 else None


def _without_extension(path: str) -> str:
    stem, dot, extension = path.rpartition(".")
    return stem if dot and "/" not in extension else path


def fold_path(name: str) -> str:
    """Returns a path as paths are compared: with slashes, in lower case, from the archive's root."""
    path = name.replace("\\", "/").strip().casefold()
    while path.startswith("./"):
        path = path[2:]
    return path.lstrip("/")
