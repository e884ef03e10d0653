"""The plots' JavaScript, served from the installed Bokeh package, so that nothing comes from elsewhere."""

from __future__ import annotations

import functools
import gzip
import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Final

from flask import Blueprint, Response, request, url_for

from shared.errors import NotFound

BOKEH_FILES: Final = ("bokeh.min.js", "bokeh-api.min.js")

blueprint = Blueprint("assets", __name__)


@blueprint.app_template_global()
def bokeh_urls() -> list[str]:
    """Returns the addresses of the plots' scripts; the version in them lets browsers keep them for good."""
    return [url_for("assets.bokeh", release=version("bokeh"), name=name) for name in BOKEH_FILES]


@blueprint.get("/assets/bokeh-<release>/<name>")
def bokeh(release: str, name: str) -> Response:
    """Sends one of Bokeh's scripts, compressed where the browser takes that."""
    if name not in BOKEH_FILES or release != version("bokeh"):
        raise NotFound(f"there is no asset {name!r} of release {release!r}")
    plain, packed = _script(name)
    takes_gzip = request.accept_encodings.quality("gzip") > 0
    answer = Response(packed if takes_gzip else plain, mimetype="text/javascript")
    if takes_gzip:
        answer.headers["Content-Encoding"] = "gzip"
    answer.headers["Cache-Control"] = "private, max-age=31536000, immutable"
    answer.vary.add("Accept-Encoding")
    return answer


@functools.cache
def _script(name: str) -> tuple[bytes, bytes]:
    """Returns a script as it is and compressed. The package is only looked up: importing it would cost a second."""
    found = importlib.util.find_spec("bokeh")
    assert found is not None  # noqa: S101 - `version` above has found it
    assert found.origin is not None  # noqa: S101 - a package with files
    plain = (Path(found.origin).parent / "server" / "static" / "js" / name).read_bytes()
    return plain, gzip.compress(plain, 9)
