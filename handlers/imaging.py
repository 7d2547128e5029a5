"""Has pictures worked on by processes that may die of it: one for each picture, limited in time and memory, a few at once."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handlers.settings import settings
from howdah import lifespan

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import AsyncIterator, Sequence

_PROGRAM = Path(__file__).with_name("pixels.py")
_CPU_SECONDS = 20  # 49 megapixels of noise took 5
_SECONDS = 60.0  # by the clock, on a machine that has other things to do
#: Pictures whose bytes are held at once, from their fetch on: 8 times APP_FETCH_MAX_BYTES is the most that they take of the worker.
_SEATS = 8
# All that the process gets to know: above all not the worker's passwords.
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONPATH", "SYSTEMROOT")


class BusyError(Exception):
    """So many pictures are in hand that there is no seat for another: return Snooze(error.delay)."""

    delay = 5.0  # seconds


class ImageRefusedError(Exception):
    """It is no picture that we take, and will not become one: return Discard(str(error))."""


class ImagingError(Exception):
    """The process died, or was too slow, and it may not be the picture's fault; worth another attempt."""


@dataclass(frozen=True, slots=True)
class Form:
    """A WebP file."""

    width: int
    height: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Made:
    """The forms in the order in which they were asked for; `source` has format and number of frames of the original."""

    source: dict[str, Any]
    forms: list[Form]


@lifespan
async def pixels() -> AsyncIterator[Pixels]:
    """Share out the machine's processors among pictures."""
    yield Pixels(max_pixels=settings().image_max_pixels)


class Pixels:
    """Makes forms of pictures: `job.resources["pixels"]`."""

    def __init__(
        self, *, max_pixels: int, cpu_seconds: int = _CPU_SECONDS, seconds: float = _SECONDS, at_once: int | None = None
    ) -> None:
        self._seats = asyncio.Semaphore(_SEATS)
        self._max_pixels = max_pixels
        self._cpu_seconds = cpu_seconds
        self._seconds = seconds
        self._at_once = asyncio.Semaphore(at_once or os.cpu_count() or 1)

    @asynccontextmanager
    async def seat(self) -> AsyncIterator[None]:
        """Hold a seat; whoever holds a picture's bytes has one. Raises BusyError when none has become free for a while."""
        try:
            async with asyncio.timeout(BusyError.delay):
                await self._seats.acquire()
        except TimeoutError:
            raise BusyError("too many pictures are in hand") from None
        try:
            yield
        finally:
            self._seats.release()

    async def make(self, body: bytes, boxes: Sequence[int]) -> Made:
        """Make one WebP for each box, the square that it must fit into; upright, sRGB, nothing attached, never enlarged.

        Raises ImageRefusedError with a sentence for the one who posted it, ImagingError.
        """
        order = {"boxes": list(boxes), "max_pixels": self._max_pixels, "seconds": self._cpu_seconds}
        async with self._at_once:
            said = await self._run(json.dumps(order).encode() + b"\n" + body)
        line, _, files = said.partition(b"\n")
        answer = json.loads(line)
        if "refused" in answer:
            raise ImageRefusedError(answer["refused"])
        forms, start = [], 0
        for form in answer["forms"]:
            forms.append(Form(form["width"], form["height"], files[start : start + form["bytes"]]))
            start += form["bytes"]
        return Made(answer["source"], forms)

    async def _run(self, said: bytes) -> bytes:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # handlers/ must not be searched for modules: settings.py, say, is nobody's there
            str(_PROGRAM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if name in _PASSED_ON},
        )
        try:
            async with asyncio.timeout(self._seconds):
                output, complaint = await process.communicate(said)
        except TimeoutError:
            raise ImagingError(f"the picture is not done within {self._seconds:g} s") from None
        finally:
            await _end(process)
        self._check(process.returncode or 0, complaint)
        return output

    def _check(self, code: int, complaint: bytes) -> None:
        if code == -signal.SIGXCPU:
            raise ImageRefusedError(f"it takes more than {self._cpu_seconds} s of computing")
        if code < 0:
            raise ImagingError(f"the picture's process died of {signal.Signals(-code).name}")
        if code > 0:
            last = complaint.decode(errors="replace").strip().rpartition("\n")[2]
            raise ImagingError(f"the picture's process left with {code}: {last}")


async def _end(process: Process) -> None:
    """Leave no process behind, also when our job is cancelled."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
