from __future__ import annotations

import pytest

from shared.faces.file_type import describe


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04....", "a zip archive"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (b"Rar!\x1a\x07\x01\x00", "a RAR archive"),
        (b"\x1f\x8b\x08", "a gzip file"),
        (b"%PDF-1.7", "a PDF document"),
        (b"GIF89a", "a GIF image"),
        (b"RIFF\x00\x00\x00\x00WEBPVP8 ", "a WebP image"),
        (b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00mif1miaf", "an AVIF image"),
        (b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00heicmiaf", "a HEIC image"),
        (b"\x00\x00\x00\x1cftypisom\x00\x00\x00\x00iso2mp41", "a video"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"\xef\xbb\xbf \n<!DOCTYPE html><title>Sign in</title>", "an HTML page"),
        (b"<?xml version='1.0'?>", "an XML or SVG file"),
        (b"BM is how this note begins\n", "a text file"),
        ("Gr\u00fc\u00df".encode()[:-1], "a text file"),
        (b"BM\x36\x00\x00\x00\x00\x00", "a BMP image"),
        (b"\x01\x02\x03\xff", "unknown data"),
    ],
)
def test_files_are_told_apart_by_their_first_bytes(head: bytes, kind: str) -> None:
    assert describe(head) == kind
