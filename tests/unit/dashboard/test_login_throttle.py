"""How often somebody may guess the token."""

from __future__ import annotations

import pytest

from dashboard.login_throttle import ADDRESS_BURST, ADDRESS_EVERY_S, TOTAL_BURST, TOTAL_EVERY_S, LoginThrottle


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_an_address_that_was_wrong_too_often_waits_and_no_other() -> None:
    throttle = LoginThrottle(Clock())
    for _ in range(ADDRESS_BURST):
        assert throttle.wait_s("10.0.0.1") == 0
        throttle.record_failure("10.0.0.1")

    assert throttle.wait_s("10.0.0.1") == ADDRESS_EVERY_S
    assert throttle.wait_s("10.0.0.2") == 0


def test_after_the_wait_one_guess_is_free_and_the_next_waits_again() -> None:
    clock = Clock()
    throttle = LoginThrottle(clock)
    for _ in range(3 * ADDRESS_BURST):
        throttle.record_failure("10.0.0.1")
    clock.now += ADDRESS_EVERY_S
    free = throttle.wait_s("10.0.0.1")
    throttle.record_failure("10.0.0.1")

    assert (free, throttle.wait_s("10.0.0.1")) == (0, ADDRESS_EVERY_S)
    clock.now += 2 * ADDRESS_BURST * ADDRESS_EVERY_S
    assert throttle.wait_s("10.0.0.1") == 0


def test_many_addresses_together_meet_a_limit_too() -> None:
    throttle = LoginThrottle(Clock())
    for i in range(5000):
        throttle.record_failure(f"10.0.{i // 256}.{i % 256}")

    assert throttle.wait_s("192.168.0.1") == TOTAL_EVERY_S
    assert throttle.wait_s("192.168.0.1", alone=True) == 0
    assert TOTAL_BURST < 5000


def test_of_many_addresses_those_that_were_wrong_last_are_remembered() -> None:
    throttle = LoginThrottle(Clock())
    for _ in range(ADDRESS_BURST):
        throttle.record_failure("192.168.0.1")
    others = [f"10.0.{i // 256}.{i % 256}" for i in range(1024)]
    for address in others[:-1]:
        throttle.record_failure(address)
    assert throttle.wait_s("192.168.0.1", alone=True) == ADDRESS_EVERY_S

    throttle.record_failure(others[-1])

    assert throttle.wait_s("192.168.0.1", alone=True) == 0


@pytest.mark.parametrize(
    ("first", "second", "same"), [("2001:db8::1", "2001:db8::2", True), ("2001:db8::1", "2001:db8:0:1::1", False)]
)
def test_the_addresses_of_one_ipv6_network_are_one(first: str, second: str, same: bool) -> None:
    throttle = LoginThrottle(Clock())
    for _ in range(ADDRESS_BURST):
        throttle.record_failure(first)

    assert (throttle.wait_s(second) > 0) == same
