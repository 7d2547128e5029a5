"""Errors cross from a process to its daemon with all their facts."""

from __future__ import annotations

import pickle

import pytest

from howdah.errors import ConfigError, HowdahError, LeaseLostError, PayloadError, RefusedError, StepError


@pytest.mark.parametrize(
    "error",
    [
        HowdahError("plain"),
        ConfigError("HOWDAH_QUEUES", "is odd"),
        LeaseLostError(1, 2),
        PayloadError("kind", "field: missing"),
        RefusedError("JB002", "there is no argument queeu", "one of queue"),
        StepError("charge", "is not JSON"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_keeps_its_message_and_its_facts_on_the_way_between_processes(error: HowdahError) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))
