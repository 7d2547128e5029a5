"""The claim loop: how much to take, when to take it, and when to sleep."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from howdah.errors import DatabaseUnavailableError
from howdah.marks import Marks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from howdah.job import Job
    from howdah.metrics import Metrics
    from howdah.scout import Scout
    from howdah.slots import QueueSlots, RunTimes
    from howdah.store import Store

log = logging.getLogger("howdah.claimer")

#: Beyond the slots only kinds that have shown to be short are claimed: work for so many seconds, as fast as their queue's jobs end, or one job for so
#: many slots, until that is known.
AHEAD, LEAST_AHEAD = 0.1, 10
#: Short kinds alone are claimed for so many seconds at most; then what is in hand is run down, and all kinds have their turn.
PASS_OVER = 0.05
#: Sets of kinds whose marks are remembered.
SETS = 4
#: The most jobs in one claim.
CLAIM_LIMIT = 1000
#: After a busy spell the polls begin at this many seconds and grow by half: a transaction that enqueued while nobody
#: slept, and commits after, gives no wake.
FIRST_POLL = 0.002
POLL_GROWTH = 1.5
#: After so many seconds of steady work enqueue is spared the notification.
STEADY = 0.1
#: After a statement that found no database, in seconds; the connection itself waits for as long as it takes.
RETRY_PAUSE = 0.05
#: While nobody hears wakes, polls are at most so many seconds apart.
DEAF_POLL = 0.2
#: While they are heard, polls go on growing to so many times the interval: a job is found by a poll alone if its transaction enqueued while nobody
#: slept and stayed open since, and then it waits for about half of that time at most.
QUIET_POLLS = 15


class Plan(NamedTuple):
    """One claim: for which kinds, and how many jobs of each queue."""

    kinds: tuple[str, ...]
    rooms: dict[str, int]


class Claimer:
    """Claims for the slots. One claim at a time: two would lock each other's rows."""

    def __init__(
        self,
        *,
        store: Store,
        slots: Mapping[str, QueueSlots],
        kinds: Sequence[str],
        run_times: RunTimes,
        worker: Callable[[], int],
        is_full: Callable[[], bool],
        is_deaf: Callable[[], bool],
        runs_suspects: Callable[[], bool],
        give_back: Callable[[Iterable[Job[Any]]], None],
        on_doubt: Callable[[int], None],
        scout: Scout,
        claimed_once: asyncio.Event,
        metrics: Metrics,
        poll_interval: float,
    ) -> None:
        """`runs_suspects` tells whether one may run: beside it nothing is claimed ahead."""
        self._store = store
        self._slots = slots
        self._kinds = tuple(kinds)
        self._run_times = run_times
        self._runs_suspects = runs_suspects
        self._worker = worker
        self._is_full = is_full
        self._is_deaf = is_deaf
        self._give_back = give_back
        self._on_doubt = on_doubt
        self._scout = scout
        self._metrics = metrics
        self._claimed = {queue: metrics.claimed.labels(queue) for queue in slots}
        self._poll_interval = poll_interval
        self._marks: dict[tuple[str, ...], Marks] = {}
        self._stir = asyncio.Event()
        self._stopping = False
        self._holds: set[str] = set()
        # When all kinds were asked for, and whether the last claim, of whatever kinds, came back full.
        self._asked_all = 0.0
        self._full = False
        # Queues whose last claim came back full, or that had no room: for them room is news.
        self._hungry = set(slots)
        self._asleep = False
        self._poll = FIRST_POLL
        # What woke us may lie behind the marks: until a look has been made, when the next one may be.
        self._woken = False
        self._next_look = 0.0
        self._work_began: float | None = None
        # Set once a claim has been answered: the worker is of use.
        self._claimed_once = claimed_once
        metrics.in_hand.set_function(lambda: sum(len(queue.hand) for queue in slots.values()))

    def wake(self) -> None:
        """Say that work has come. To be called on the main loop."""
        self._woken = True
        self._stir.set()

    def room(self, queue: str) -> None:
        """Say that a job of a queue has ended."""
        if queue in self._hungry:
            self._stir.set()

    def look(self) -> None:
        """Plan anew. On the main loop."""
        self._stir.set()

    @property
    def may_claim(self) -> bool:
        """Whether nothing keeps this worker from claims: neither a reason to hold, nor acks that wait, nor its end."""
        return not self._stopping and not self._holds and not self._is_full()

    def hold(self, reason: str) -> None:
        """Claim nothing until every reason is gone."""
        if reason not in self._holds:
            self._holds.add(reason)
            log.warning("claims no more", extra={"reason": reason})

    def go_on(self, reason: str) -> None:
        """Take a reason away."""
        if reason in self._holds:
            self._holds.remove(reason)
            log.warning("claims again", extra={"reason": reason})
            self._stir.set()

    def stop(self) -> None:
        """Claim no more; `run` returns after the claim that is on its way."""
        self._stopping = True
        self._stir.set()

    async def run(self) -> None:
        """Claim for as long as the service takes work."""
        while not self._stopping:
            self._stir.clear()
            try:
                plan = self._plan()
                if plan is None:
                    # Nothing is planned for want of room, so room is news in every queue.
                    self._hungry = set(self._slots)
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._poll_interval):
                            await self._stir.wait()
                elif not await self._claim(plan):
                    await self._rest()
            except DatabaseUnavailableError as error:
                log.debug("claim failed", extra={"error": str(error)})
                self._asleep = False
                await asyncio.sleep(RETRY_PAUSE)

    def _plan(self) -> Plan | None:
        """Decide what to ask for: every kind for free slots, and beyond them only kinds that are short.

        Claims for short kinds alone pass over whatever came before, so they go on for a moment only, and then every kind has its turn.
        """
        if self._is_full() or self._holds:
            return None
        now = monotonic()
        free = {name: slots.free for name, slots in self._slots.items() if slots.free}
        short = () if self._runs_suspects() else tuple(filter(self._run_times.is_short, self._kinds))
        passing = self._full and now - self._asked_all < PASS_OVER
        if short and (passing or len(short) == len(self._kinds)):
            rooms = {
                name: room for name, slots in self._slots.items() if (room := slots.free + self._ahead(slots, now))
            }
            return Plan(short, _limited(rooms)) if rooms else None
        return Plan(self._kinds, _limited(free)) if free else None

    def _ahead(self, slots: QueueSlots, now: float) -> int:
        """Give how many to claim ahead: none until half of what was is used up, so that claims stay few and large."""
        most = max(int(slots.pace(now) * AHEAD), slots.size // LEAST_AHEAD)
        waiting = max(len(slots.hand) - max(slots.size - slots.running, 0), 0)
        return most - waiting if waiting <= most // 2 else 0

    async def _claim(self, plan: Plan) -> bool:
        """Claim once and hand over; tells whether there may be more."""
        marks = self._marks_of(plan.kinds)
        began = monotonic()
        look = began >= marks.next_look and not self._scout.away
        self._woken = self._woken and not look
        if look and marks.dear and marks.behind(plan.rooms):
            look = False
            self._scout.send(marks, plan.kinds, plan.rooms)
        lease = secrets.randbits(63)
        try:
            claim = await self._store.claim(
                self._worker(), lease, plan.kinds, plan.rooms, marks.stretches(plan.rooms, look=look)
            )
        except BaseException:
            self._on_doubt(lease)
            raise
        ended = monotonic()
        self._metrics.claim_seconds.observe(ended - began)
        self._metrics.claim_batch.observe(len(claim.jobs))
        if not claim.jobs:
            self._metrics.claims_empty.inc()
        marks.claimed(plan.rooms, claim.jobs, claim.newest, look=look, began=began, ended=ended)
        self._next_look = marks.next_look
        self._claimed_once.set()
        counts = self._hand_over(claim.jobs, ended)
        self._hungry = {
            name for name in self._slots if name not in plan.rooms or counts.get(name, 0) >= plan.rooms[name]
        }
        self._full = any(counts.get(name, 0) >= room for name, room in plan.rooms.items())
        passed_over = len(plan.kinds) < len(self._kinds)
        if not passed_over:
            self._asked_all = ended
        if claim.jobs:
            await self._note_work(began)
        # Asleep, every later commit notifies; a claim for all kinds that came back short has nothing to go back for.
        return passed_over or self._full or (bool(claim.jobs) and not self._asleep)

    def _marks_of(self, kinds: tuple[str, ...]) -> Marks:
        """Give the marks of a set of kinds; which kinds are short changes, so a new set begins where all kinds have come to."""
        marks = self._marks.get(kinds)
        if marks is None:
            whole = self._marks.setdefault(self._kinds, Marks())
            if len(self._marks) > SETS:
                self._marks = {self._kinds: whole}
            marks = self._marks[kinds] = whole if kinds == self._kinds else whole.of_some()
        return marks

    def _hand_over(self, jobs: Sequence[Job[Any]], now: float) -> dict[str, int]:
        by_queue: dict[str, list[Job[Any]]] = {}
        for job in jobs:
            job.in_hand_since = now
            by_queue.setdefault(job.queue, []).append(job)
        for name, claimed in by_queue.items():
            self._claimed[name].inc(len(claimed))
            if self._stopping:
                self._give_back(claimed)  # the claim was on its way when the drain began
            else:
                self._slots[name].give(claimed)
        return {name: len(claimed) for name, claimed in by_queue.items()}

    async def _note_work(self, now: float) -> None:
        if self._work_began is None:
            self._work_began = now
        elif self._asleep and now - self._work_began > STEADY:
            await self._store.say_awake(self._worker())
            self._asleep = False

    async def _rest(self) -> None:
        """Sleep until a wake, room, or the next poll. Saying so comes first, and then one more claim: see `_asleep`."""
        if not self._asleep:
            await self._store.say_asleep(self._worker())
            self._asleep = True
            self._poll = FIRST_POLL
            return
        began = monotonic()
        longest = DEAF_POLL if self._is_deaf() else self._poll_interval * QUIET_POLLS
        poll = min(self._poll, longest)
        # The scout stirs when it is back.
        to_look = max(self._next_look - began, 0.0) if self._woken and not self._scout.away else poll
        try:
            async with asyncio.timeout(min(poll, to_look)):
                await self._stir.wait()
        except TimeoutError:
            if not self._woken:
                self._metrics.polls.inc()
                self._poll = min(self._poll * POLL_GROWTH, longest)
        if monotonic() - began > 0.005:
            self._work_began = None


def _limited(rooms: dict[str, int]) -> dict[str, int]:
    """Share the most that one claim may bring among the queues, by their room."""
    total = sum(rooms.values())
    if total <= CLAIM_LIMIT:
        return rooms
    return {name: max(room * CLAIM_LIMIT // total, 1) for name, room in rooms.items()}
