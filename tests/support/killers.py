"""Images that kill the process that decodes them, or provoke a bug in it, as no image that we know of does."""

from __future__ import annotations

from pathlib import Path

from tests.support.builders.models import image_of

KILLER = image_of(66) + b"deadly"
BUGGY = image_of(66) + b"buggy"


def killing_environment(folder: Path) -> dict[str, str]:
    """Returns settings with which every Python process that is started dies of `KILLER`, and stumbles over `BUGGY`.

    Python imports `sitecustomize` at its start.
    """
    (folder / "killers").mkdir()
    (folder / "killers" / "sitecustomize.py").write_text(
        "import os, shared.faces.decode\n"
        "decode = shared.faces.decode.decode_face\n"
        "def decode_or_die(data, *rest):\n"
        "    if bytes(data).endswith(b'deadly'):\n"
        "        os.abort()\n"
        "    if bytes(data).endswith(b'buggy'):\n"
        "        raise RuntimeError('a bug that this image provokes: secret detail')\n"
        "    return decode(data, *rest)\n"
        "shared.faces.decode.decode_face = decode_or_die\n"
    )
    return {"PYTHONPATH": f"{folder / 'killers'}:{Path(__file__).parents[2]}"}
