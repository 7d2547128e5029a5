"""Processes for what strangers made: whatever it does, the worker goes on, and the next one is served."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.eventually import aeventually
from support.hostile import crash, devour, double, fail, passwords, spin

from handlers import subprocesses
from handlers.subprocesses import CrashedError, NoSeatError, Subprocesses, TooLargeError, TooLongError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def processes() -> Iterator[Subprocesses]:
    made = Subprocesses(1)
    yield made
    made.close()


@pytest.fixture(autouse=True)
async def still_of_use(processes: Subprocesses) -> object:
    """Whatever a test did: the next call is served."""
    yield
    assert await processes.call(double, 21) == 42


async def test_a_function_is_called_with_what_it_is_given(processes: Subprocesses) -> None:
    assert await asyncio.gather(*(processes.call(double, n) for n in range(10))) == list(range(0, 20, 2))


async def test_what_it_raises_is_raised(processes: Subprocesses) -> None:
    with pytest.raises(ValueError, match="cut off"):
        await processes.call(fail, "cut off")


async def test_one_that_takes_too_long_is_killed(processes: Subprocesses, tmp_path: Path) -> None:
    with pytest.raises(TooLongError, match=r"it takes longer than 0\.3 seconds"):
        await processes.call(spin, str(tmp_path / "pid"), seconds=0.3)
    await aeventually(lambda: not lives(tmp_path / "pid"))


async def test_one_that_nobody_wants_any_more_is_killed(processes: Subprocesses, tmp_path: Path) -> None:
    call = asyncio.create_task(processes.call(spin, str(tmp_path / "pid")))
    await aeventually(lambda: lives(tmp_path / "pid"))
    call.cancel()
    with suppress(asyncio.CancelledError):
        await call
    await aeventually(lambda: not lives(tmp_path / "pid"), timeout=1)


async def test_one_that_wants_too_much_memory_does_not_get_it(processes: Subprocesses) -> None:
    with pytest.raises(TooLargeError, match="it needs more than 256 MB of memory"):
        await processes.call(devour, megabytes=256)


async def test_one_whose_process_dies_is_told(processes: Subprocesses) -> None:
    with pytest.raises(CrashedError, match="died with code -11"):
        await processes.call(crash)


async def test_only_so_many_files_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "PATIENCE", 0.05)
    processes = Subprocesses()
    async with AsyncExitStack() as stack:
        for _ in range(subprocesses.SEATS):
            await stack.enter_async_context(processes.seat())
        with pytest.raises(NoSeatError):
            await stack.enter_async_context(processes.seat())
    async with processes.seat():
        pass


async def test_a_process_that_reads_files_knows_no_passwords(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOWDAH_DATABASE_URL", "postgresql://somebody:secret@localhost")
    monkeypatch.setenv("APP_CHAT_TOKEN", "secret")
    fresh = Subprocesses(1)
    try:
        assert await fresh.call(passwords) == []
    finally:
        fresh.close()


def lives(note: Path) -> bool:
    """Tell whether the process that left its number lives; a zombie does not."""
    if not note.exists() or not (number := note.read_text(encoding="ascii")):
        return False
    with suppress(OSError):
        os.kill(int(number), 0)
        return Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    return False
