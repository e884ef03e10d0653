"""The pages for people: each module is one section of the menu."""

from __future__ import annotations

from flask import Flask

from dashboard.pages import assets, compare, datasets, dead, jobs, manage, models, overview, predict, runs


def register_pages(app: Flask) -> None:
    """Adds every page to the app."""
    for section in (assets, overview, datasets, runs, models, predict, jobs, dead, manage, compare):
        app.register_blueprint(section.blueprint)
