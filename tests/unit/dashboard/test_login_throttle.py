"""How often somebody may guess the token."""

from __future__ import annotations

import pytest

from dashboard.login_throttle import ADDRESS_BURST, ADDRESS_EVERY_S, TOTAL_BURST, TOTAL_EVERY_S, Attempts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_that_was_wrong_too_often_waits_and_no_other() -> None:
    attempts = Attempts(Clock())
    for _ in range(ADDRESS_BURST):
        assert attempts.wait_s("10.0.0.1") == 0
        attempts.failed("10.0.0.1")

    assert attempts.wait_s("10.0.0.1") == ADDRESS_EVERY_S
    assert attempts.wait_s("10.0.0.2") == 0


def test_after_the_wait_one_guess_is_free_and_the_next_waits_again() -> None:
    clock = Clock()
    attempts = Attempts(clock)
    for _ in range(3 * ADDRESS_BURST):
        attempts.failed("10.0.0.1")
    clock.now += ADDRESS_EVERY_S
    free = attempts.wait_s("10.0.0.1")
    attempts.failed("10.0.0.1")

    assert (free, attempts.wait_s("10.0.0.1")) == (0, ADDRESS_EVERY_S)
    clock.now += 2 * ADDRESS_BURST * ADDRESS_EVERY_S
    assert attempts.wait_s("10.0.0.1") == 0


def test_many_addresses_together_meet_a_limit_too_and_cost_no_more_memory() -> None:
    attempts = Attempts(Clock())
    for i in range(5000):
        attempts.failed(f"10.0.{i // 256}.{i % 256}")

    assert attempts.wait_s("192.168.0.1") == TOTAL_EVERY_S
    assert attempts.wait_s("192.168.0.1", alone=True) == 0
    assert len(attempts._of_address) == 1024
    assert TOTAL_BURST < 5000


@pytest.mark.parametrize(
    ("first", "second", "same"), [("2001:db8::1", "2001:db8::2", True), ("2001:db8::1", "2001:db8:0:1::1", False)]
)
def test_the_addresses_of_one_ipv6_network_are_one(first: str, second: str, same: bool) -> None:
    attempts = Attempts(Clock())
    for _ in range(ADDRESS_BURST):
        attempts.failed(first)

    assert (attempts.wait_s(second) > 0) == same
