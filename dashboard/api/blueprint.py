"""The blueprint of the API, which refuses parameters that a call does not have."""

from __future__ import annotations

from flask import Blueprint, request

from dashboard.api.document import query_parameters
from shared.errors import InvalidMessage, short_repr

blueprint = Blueprint("api", __name__, url_prefix="/api/v1")


@blueprint.before_request
def _refuse_unknown_parameters() -> None:
    """A misspelt parameter is not one that was left out."""
    # An `operationId` is the name of its view.
    known = query_parameters()[str(request.endpoint).removeprefix("api.")]
    if unknown := [short_repr(name) for name in request.args if name not in known]:
        raise InvalidMessage(
            f"found {', '.join(unknown)} in the query; expected {' or '.join(known) or 'nothing'} there"
        )
