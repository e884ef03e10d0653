"""What an archive holds, column by column: read from the end of a zip, or from the headers of a tar."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.archives.entry import decode_name
from shared.errors import InvalidDataset


@dataclass(frozen=True)
class Directory:
    """An archive's entries, column by column; all arrays have a row an entry, in the directory's order.

    Attributes:
        offsets: int64, of their local headers in a zip, of their content in a tar.
        packed_bytes: int64.
        size_bytes: int64, unpacked, as claimed.
        crcs: uint32, of the unpacked bytes; None in a tar, which has none.
        encrypted: bool.
        methods: uint16, of compression, as in a zip.
        modes: uint16, kind and permissions of a file as Unix has them; 0 from programs that have none.
        names: as they are written; see `name`.
    """

    offsets: NDArray[np.int64]
    packed_bytes: NDArray[np.int64]
    size_bytes: NDArray[np.int64]
    crcs: NDArray[np.uint32] | None
    encrypted: NDArray[np.bool_]
    methods: NDArray[np.uint16]
    modes: NDArray[np.uint16]
    names: list[bytes]

    def __len__(self) -> int:
        return len(self.offsets)

    def name(self, row: int) -> str:
        """Returns an entry's name."""
        return decode_name(self.names[row])


def too_many_entries(found: int, max_entries: int) -> InvalidDataset:
    """Returns the error of an archive with more entries than are taken."""
    return InvalidDataset(
        f"found {found:,} or more entries in the archive, expected at most {max_entries:,}", code="archive_too_large"
    )
