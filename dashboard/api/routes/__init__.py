"""The calls of the HTTP API, under `/api/v1`: importing a module adds its calls to the blueprint."""

from dashboard.api.blueprint import blueprint
from dashboard.api.routes import comparisons, datasets, dead, jobs, models, predictions, runs, status, uploads

__all__ = ["blueprint", "comparisons", "datasets", "dead", "jobs", "models", "predictions", "runs", "status", "uploads"]
