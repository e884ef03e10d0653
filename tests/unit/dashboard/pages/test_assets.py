"""Scripts and styles: where they come from, and what they weigh."""

from __future__ import annotations

import gzip
import re

from tests.support.dashboard_app import Site
from tests.unit.dashboard.pages.helpers import RUN


def test_the_plots_script_comes_from_us_compressed_and_to_keep(filled: Site) -> None:
    page = filled.web.get(f"/runs/{RUN}").text
    urls = re.findall(r'<script src="(/assets/bokeh[^"]+)"', page)
    assert len(urls) == 2

    sizes = []
    for url in urls:
        packed = filled.web.get(url, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert "immutable" in packed.headers["Cache-Control"]
        assert gzip.decompress(packed.data) == filled.web.get(url, headers={"Accept-Encoding": "identity"}).data
        sizes.append(len(packed.data))
    assert sum(sizes) < 450_000
    assert "/assets/bokeh" not in filled.web.get("/models").text
    assert filled.web.get("/assets/bokeh-0.0.0/bokeh.min.js").status_code == 404


def test_the_style_nonce_is_new_for_each_answer_and_only_where_plots_are(filled: Site) -> None:
    nonces = set()
    for _ in range(2):
        answer = filled.web.get(f"/runs/{RUN}")
        found = re.search(r"'nonce-([\w-]+)'", answer.headers["Content-Security-Policy"])
        assert found is not None
        assert f'data-nonce="{found[1]}"' in answer.text
        nonces.add(found[1])
    assert len(nonces) == 2
    assert "nonce" not in filled.web.get("/models").headers["Content-Security-Policy"]


def weight_of_the_first_page(site: Site) -> int:
    """Returns the bytes of the overview and its scripts, the plots' ones as they go over the wire."""
    web = site.web
    page = web.get("/")
    urls = re.findall(r'(?:href|src)="(/(?:static|assets)/[^"]+)"', page.text)
    urls += [f"/static/js/{name}" for script in ("charts", "save") for name in (f"{script}.js", "json.js")]
    packed = {"Accept-Encoding": "gzip"}
    return len(page.data) + sum(len(web.get(url, headers=packed, buffered=True).data) for url in dict.fromkeys(urls))


def test_the_first_page_is_light(site: Site) -> None:
    assert weight_of_the_first_page(site) < 100_000


def test_the_first_page_is_below_half_a_megabyte_with_its_plots(filled: Site) -> None:
    assert 300_000 < weight_of_the_first_page(filled) < 500_000
