"""How long an attempt waits: bounds for every attempt, and jitter in the upper half."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from howdah.backoff import CAP, backoff

attempts = st.integers(min_value=1, max_value=10**9)


@given(attempts, st.integers())
def test_the_wait_is_between_half_and_all_of_two_to_the_attempt_and_never_above_the_cap(
    attempt: int, seed: int
) -> None:
    longest = min(CAP, 2.0 ** min(attempt, 64))
    assert longest / 2 <= backoff(attempt, rng=random.Random(seed))  # noqa: S311 <= longest


@given(attempts, st.floats(min_value=0.001, max_value=1e6))
def test_a_given_cap_holds(attempt: int, cap: float) -> None:
    assert 0 < backoff(attempt, cap=cap) <= cap


def test_attempts_that_failed_together_do_not_come_back_together() -> None:
    waits = {backoff(5) for _ in range(100)}
    assert len(waits) > 90
    assert max(waits) - min(waits) > 4


def test_later_attempts_wait_longer() -> None:
    rng = random.Random(1)  # noqa: S311
    waits = [sum(backoff(attempt, rng=rng) for _ in range(200)) for attempt in range(1, 12)]
    assert waits == sorted(waits)
