"""A browser for all tests of a process, and the address of a test file's dashboard."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from tests.support.browser import chromium
from tests.support.dashboard_app import Site, served


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; each `Visit` has cookies and a window of its own."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def base(site: Site) -> Iterator[str]:
    """The address of the `site` that the test file makes."""
    with served(site) as address:
        yield address
