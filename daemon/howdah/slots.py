"""The slots of a queue: tasks that take jobs in hand one after the other and run them."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from howdah.job import Job
    from howdah.metrics import Metrics

#: Longer than this, in seconds, a slot never keeps the loop to itself: acks, timers and signals wait meanwhile.
TURN = 0.005
#: A kind has shown to be short once so many runs took less than so many seconds on average. From then on a run weighs as one of so many.
SHORT_RUNS, SHORT_SECONDS = 10, 0.01
#: A queue's pace is taken over at least so many seconds, and is that of about the last so many.
PACE_SPAN, PACE_MEMORY = 0.005, 0.05
_UNSEEN = (0, 0.0)


class Cap:
    """The most jobs that may run at once over all queues."""

    def __init__(self, size: int) -> None:
        self.free = size
        self._parked: deque[asyncio.Future[None]] = deque()

    async def take(self) -> None:
        """Take a place, waiting for one if need be."""
        while self.free <= 0:
            place = asyncio.get_running_loop().create_future()
            self._parked.append(place)
            await place
        self.free -= 1

    def give(self) -> None:
        """Give a place back."""
        self.free += 1
        while self._parked:
            place = self._parked.popleft()
            if not place.done():
                place.set_result(None)
                break


class RunTimes:
    """How long each kind has run of late, in seconds: what tells which kinds may be claimed ahead."""

    def __init__(self) -> None:
        # Of each kind how many runs the average is made of, up to those that count, and the average.
        self._seen: dict[str, tuple[int, float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Count one run."""
        runs, average = self._seen.get(kind, _UNSEEN)
        if runs < SHORT_RUNS:
            runs += 1
        self._seen[kind] = runs, average + (seconds - average) / runs

    def is_short(self, kind: str) -> bool:
        """Tell whether a kind has shown to be short."""
        runs, average = self._seen.get(kind, _UNSEEN)
        return runs >= SHORT_RUNS and average < SHORT_SECONDS


class QueueSlots:
    """A queue's slots and the jobs in hand for them. Touched by the main loop alone."""

    def __init__(
        self,
        *,
        queue: str,
        size: int,
        cap: Cap | None,
        run_times: RunTimes,
        begin: Callable[[Job[Any]], Awaitable[None] | None],
        on_room: Callable[[str], None],
        on_failure: Callable[[BaseException], None],
        metrics: Metrics,
    ) -> None:
        self.queue = queue
        self.size = size
        self.running = 0
        #: Slots that are kept free for a claim that is on its way.
        self.aside = 0
        self.hand: deque[Job[Any]] = deque()
        # How many jobs have ended since the pace was last taken, when that was, and jobs a second.
        self._ended = 0
        self._paced_at = monotonic()
        self._pace = 0.0
        # How many jobs in hand were given to stand first.
        self._firsts = 0
        self._cap = cap
        self._run_times = run_times
        self._begin = begin
        self._on_room = on_room
        self._on_failure = on_failure
        self._parked: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._awaited: dict[int, asyncio.Future[None]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.slots.labels(queue).set_function(lambda: self.size)
        metrics.slots_used.labels(queue).set_function(lambda: self.running)

    @property
    def free(self) -> int:
        """Slots for which nothing is in hand."""
        return max(self.size - self.running - self.aside - len(self.hand), 0)

    def pace(self, now: float) -> float:
        """Give how many jobs a second have ended of late: what this queue's jobs take, or how few there are."""
        span = now - self._paced_at
        if span >= PACE_SPAN:
            self._pace += (self._ended / span - self._pace) * min(span / PACE_MEMORY, 1.0)
            self._paced_at = now
            self._ended = 0
        return self._pace

    def set_aside(self, count: int) -> int:
        """Keep up to so many slots free that nothing runs in, whatever waits in hand; gives how many."""
        count = max(min(count, self.size - self.running - self.aside - self._firsts), 0)
        if self._cap is not None:
            count = max(min(count, self._cap.free), 0)
        self.aside += count
        return count

    def set_free(self, count: int) -> None:
        """Let slots that were kept free be used."""
        if count:
            self.aside -= count
            for _ in range(count if self.hand else 0):
                self._wake_one()
            self._on_room(self.queue)

    def give_first(self, job: Job[Any]) -> None:
        """Put a claimed job in hand before all others."""
        self._firsts += 1
        self.hand.appendleft(job)
        self._idle.clear()
        self._wake_one()

    def end_of(self, job: Job[Any]) -> asyncio.Future[None]:
        """Give what is done when a job that is about to be put in hand has ended, or was taken back."""
        self._awaited[job.id] = ended = asyncio.get_running_loop().create_future()
        return ended

    def give(self, jobs: Iterable[Job[Any]]) -> None:
        """Put claimed jobs in hand."""
        self.hand.extend(jobs)
        if self.hand:
            self._idle.clear()
            self._wake_one()

    def take_back(self) -> list[Job[Any]]:
        """Take what has not started out of hand."""
        jobs = list(self.hand)
        self.hand.clear()
        self._firsts = 0
        for job in jobs:
            self._note_end(job)
        self._note_idle()
        return jobs

    def take_out(self, job_id: int) -> Job[Any] | None:
        """Take one job out of hand, if it is there and has not started."""
        for job in self.hand:
            if job.id == job_id:
                self.hand.remove(job)
                self._note_end(job)
                self._note_idle()
                return job
        return None

    def resize(self, size: int) -> None:
        """Have another number of slots from now on; what runs above it ends in its own time."""
        self.size = size
        if self.hand:
            self._wake_one()
        self._on_room(self.queue)

    async def settled(self) -> None:
        """Wait until nothing runs and nothing is in hand."""
        await self._idle.wait()

    def cancel(self) -> None:
        """Cancel every slot, and with it what it runs."""
        for task in self._tasks:
            task.cancel()

    def _wake_one(self) -> None:
        """Let one idle slot look for work; it wakes the next one. So a burst of short jobs wakes few slots."""
        while self._parked:
            bed = self._parked.popleft()
            if not bed.done():
                bed.set_result(None)
                return
        if len(self._tasks) < self.size:
            task = asyncio.get_running_loop().create_task(self._slot(), name=f"slot {self.queue}")
            self._tasks.add(task)
            task.add_done_callback(self._note_gone)

    def _note_gone(self, task: asyncio.Task[None]) -> None:
        """Tell of a slot that broke, and took its job with it: nothing that a handler does can do that."""
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    async def _slot(self) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        # Not loop.time(): uvloop's stands still while the loop is in one of its turns.
        turn_ends = monotonic() + TURN
        while True:
            if not self.hand or self.running >= self.size - self.aside:
                bed = loop.create_future()
                self._parked.append(bed)
                # Said here and not with each job: who hears of it runs when this slot lets go of the loop.
                self._on_room(self.queue)
                await bed
                turn_ends = monotonic() + TURN
                continue
            if self._cap is not None:
                if self._cap.free <= 0:
                    self._on_room(self.queue)
                await self._cap.take()
                if not self.hand:
                    self._cap.give()
                    continue
            if self._firsts:
                self._firsts -= 1
            job = self.hand.popleft()
            job.task = task
            self.running += 1
            try:
                if (waits := self._begin(job)) is not None:
                    self._let_go()
                    await waits
            finally:
                ended = monotonic()
                self._note_run(job, ended)
            if ended > turn_ends:
                self._let_go()
                await asyncio.sleep(0)
                turn_ends = monotonic() + TURN

    def _let_go(self) -> None:
        """Let others at the loop: who waits for room, and a slot for the next job in hand."""
        self._on_room(self.queue)
        if self.hand:
            self._wake_one()

    def _note_run(self, job: Job[Any], ended: float) -> None:
        self.running -= 1
        self._ended += 1
        if self._cap is not None:
            self._cap.give()
        self._run_times.add(job.kind, ended - job.started)
        if self._awaited:
            self._note_end(job)
        if not self.running and not self.hand:
            self._idle.set()

    def _note_end(self, job: Job[Any]) -> None:
        ended = self._awaited.pop(job.id, None)
        if ended is not None and not ended.done():
            ended.set_result(None)

    def _note_idle(self) -> None:
        if not self.running and not self.hand:
            self._idle.set()
