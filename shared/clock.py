"""Times as text, for records and messages: ISO 8601 in UTC."""

from __future__ import annotations

import time


def now_iso() -> str:
    """Returns the time as ISO 8601 in UTC, to the millisecond."""
    return iso(time.time())


def iso(seconds: float) -> str:
    """Returns a Unix time as ISO 8601 in UTC, to the millisecond."""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds % 1 * 1000):03d}Z"
