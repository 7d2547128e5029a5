"""How long to wait before the next attempt."""

from __future__ import annotations

import random

CAP = 3600.0


def backoff(attempt: int, *, cap: float = CAP, rng: random.Random | None = None) -> float:
    """Give the seconds to wait after failed attempt number `attempt` (from 1).

    2^attempt seconds, at most `cap`, of which the upper half is random: attempts that failed together do not come back
    together. ("Equal jitter": M. Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.)
    """
    longest = min(cap, 2.0 ** min(attempt, 30))
    uniform = rng.uniform if rng is not None else random.uniform
    return longest / 2 + uniform(0, longest / 2)
