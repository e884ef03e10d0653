"""How many wrong tokens are answered as such: a few at once, then one now and then, in constant memory.

Over the limit, a wrong token is answered with a time to wait. The right token still works, so that nobody can lock its
owner out.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

ADDRESS_BURST: Final = 10
ADDRESS_EVERY_S: Final = 30.0
TOTAL_BURST: Final = 100
TOTAL_EVERY_S: Final = 3.0
_ADDRESSES_KEPT: Final = 1024


class _Bucket:
    """Fills by one a failure and runs out by one every `every_s`; wrong tokens wait while it is full."""

    def __init__(self, burst: int, every_s: float) -> None:
        self._burst = burst
        self._every_s = every_s
        self._level = 0.0
        self._at = 0.0

    def wait_s(self, now: float) -> float:
        return max(0.0, (self._leak(now) - self._burst + 1) * self._every_s)

    def fill(self, now: float) -> None:
        self._level = min(self._leak(now) + 1, self._burst)
        self._at = now

    def _leak(self, now: float) -> float:
        return max(0.0, self._level - (now - self._at) / self._every_s)


class LoginThrottle:
    """Counts wrong tokens by remote address, and all of them together. Thread-safe.

    An address may be wrong `ADDRESS_BURST` times, and from then on once in `ADDRESS_EVERY_S` seconds; all addresses
    together `TOTAL_BURST` times, then once in `TOTAL_EVERY_S`. The addresses that were wrong last are remembered; who
    has so many that the oldest are forgotten still meets the second limit.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of_address: OrderedDict[str, _Bucket] = OrderedDict()
        self._total = _Bucket(TOTAL_BURST, TOTAL_EVERY_S)

    def wait_s(self, address: str | None, *, alone: bool = False) -> float:
        """Returns for how many seconds a wrong token from an address is answered with the wish to wait; 0 for none.

        Args:
            address: an IP address.
            alone: looks at this address only, not at all of them together.
        """
        now = self._clock()
        with self._lock:
            bucket = self._of_address.get(_network(address))
            return max(bucket.wait_s(now) if bucket else 0.0, 0.0 if alone else self._total.wait_s(now))

    def record_failure(self, address: str | None) -> None:
        """Takes note of a wrong guess."""
        now, network = self._clock(), _network(address)
        with self._lock:
            bucket = self._of_address.setdefault(network, _Bucket(ADDRESS_BURST, ADDRESS_EVERY_S))
            bucket.fill(now)
            self._of_address.move_to_end(network)
            if len(self._of_address) > _ADDRESSES_KEPT:
                self._of_address.popitem(last=False)
            self._total.fill(now)


def _network(address: str | None) -> str:
    """Returns what one person has: an IPv4 address, or the /64 around an IPv6 address."""
    try:
        found = ipaddress.ip_address(address or "")
    except ValueError:
        return ""
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else str(found)
