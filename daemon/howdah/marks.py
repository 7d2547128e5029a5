"""How far a worker has claimed, per queue and priority: the watermarks that let a claim pass over what lies behind.

Behind a mark lie jobs in hand and the dead index entries of jobs that are done. What comes to lie behind one without being
claimed (late commits, promoted, retried, released and rescued jobs) is found by a look from the start, which is dear when
much lies there; so looks get a twentieth of the time, and a dear one is no claim: it is made beside them, and what it found is claimed by its ids.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from howdah.store import LAST_RANK, START, Mark, Stretch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from howdah.job import Job

#: A look is followed by so many times its own duration without one.
LOOK_SHARE = 20
#: What a first look that comes back full counts as at most, in seconds: it may have planned, or found the server cold, and the next one tells.
FIRST_LOOK = 0.1
#: A look that takes more seconds than this is not part of a claim.
DEAR = 0.01
#: The most jobs of a queue that are claimed by their ids; where more lie behind, the mark goes down to them.
MOST_FOUND = 1000
#: While claims come back full there is no hurry to look behind: seconds.
BUSY_LOOK_INTERVAL = 0.2
#: A mark never moves past ids that were given out less than so many seconds ago: their transactions may still be open.
LAG = 0.05
#: More ids than these are not given out in that time: what a first claim knows, which has seen none being given out.
LAG_IDS = 20_000
_SAMPLE = 0.01


class Marks:
    """The watermarks of one set of kinds."""

    def __init__(self) -> None:
        self._past: dict[tuple[str, int], int] = {}
        # Ids of jobs that lie behind.
        self._found: dict[tuple[str, int], list[int]] = {}
        self._newest: deque[tuple[float, int]] = deque()
        self._settled = 0
        # What the last look took, in seconds, and the cheaper of the last two.
        self._spent = 0.0
        self._cost = 0.0
        self.next_look = 0.0

    def of_some(self) -> Marks:
        """Give marks for some of these kinds alone: what lies behind for all lies behind for them."""
        marks = Marks()
        marks._past = dict(self._past)
        marks._newest = self._newest.copy()
        marks._settled = self._settled
        marks._spent, marks._cost = self._spent, self._cost
        marks.next_look = self.next_look
        return marks

    @property
    def dear(self) -> bool:
        """Whether looks take long."""
        return self._cost > DEAR

    def stretches(self, queues: Iterable[str], *, look: bool) -> list[Stretch]:
        """Give where to claim: what was found behind the marks and all that lies before them, or from the start."""
        if look:
            return [Stretch(queue, *START, LAST_RANK) for queue in queues]
        stretches = []
        for queue in queues:
            for rank in range(LAST_RANK + 1):
                stretches += [
                    Stretch(queue, rank, found - 1, rank, found) for found in self._found.get((queue, rank), ())
                ]
                stretches.append(Stretch(queue, rank, self._past.get((queue, rank), 0), rank))
        return stretches

    def behind(self, queues: Iterable[str]) -> list[Mark]:
        """Give how far a look beside the claims has to go."""
        return [
            Mark(queue, rank, past)
            for queue in queues
            for rank in range(LAST_RANK + 1)
            if (past := self._past.get((queue, rank), 0))
        ]

    def found(self, queues: Iterable[str], jobs: Sequence[Mark], *, began: float, ended: float) -> None:
        """Take in what a look beside the claims has found in these queues: all of it, in claim order, or the first MOST_FOUND of a queue."""
        counts = Counter(job.queue for job in jobs)
        looked_at = set(queues)
        self._found = {key: ids for key, ids in self._found.items() if key[0] not in looked_at}
        for queue, rank, number in jobs:
            self._found.setdefault((queue, rank), []).append(number)
        for queue, count in counts.items():
            if count >= MOST_FOUND:
                key = (queue, max(job.rank for job in jobs if job.queue == queue))
                self._past[key] = self._found.pop(key)[0] - 1
        self._charge(ended - began, ended)

    def claimed(
        self, rooms: Mapping[str, int], jobs: Sequence[Job[Any]], newest: int, *, look: bool, began: float, ended: float
    ) -> None:
        """Move the marks after a claim that lasted from `began` to `ended`."""
        settled = self._settle(newest, began)
        found: dict[str, dict[int, int]] = {queue: {} for queue in rooms}
        counts = dict.fromkeys(rooms, 0)
        for job in jobs:
            ranks = found[job.queue]
            rank = LAST_RANK - job.priority
            if job.id > ranks.get(rank, 0):
                ranks[rank] = job.id
            counts[job.queue] += 1
        any_full = False
        for queue, room in rooms.items():
            full = counts[queue] >= room
            any_full = any_full or full
            self._move(queue, found[queue], settled, full=full, look=look)
        if look:
            # All of it counts as spent on what lies behind, full or not: a claim from the marks would have found the rest for next to nothing.
            self._charge(ended - began, ended, full=any_full)

    def _charge(self, spent: float, ended: float, *, full: bool = False) -> None:
        """Count what a look took. The cheaper of the last two counts: one that was slow for another reason says nothing."""
        self._cost, self._spent = min(spent, self._spent or (FIRST_LOOK if full else 0.0)), spent
        self.next_look = ended + max(self._cost * LOOK_SHARE, BUSY_LOOK_INTERVAL if full else 0.0)

    def _move(self, queue: str, found: dict[int, int], settled: int, *, full: bool, look: bool) -> None:
        last = max(found, default=LAST_RANK) if full else LAST_RANK + 1
        for rank in range(LAST_RANK + 1):
            key = (queue, rank)
            past = self._past.get(key, 0)
            if rank < last:
                # Read to its end: all that lies there and is settled is behind us.
                self._past[key] = max(past, settled)
                self._found.pop(key, None)
            elif rank == last and rank in found:
                # A full look may have found old jobs by the thousand: the mark goes down to them.
                reached = min(found[rank], settled) if settled else 0
                self._past[key] = reached if look else max(past, reached)
                if key in self._found:
                    self._found[key] = [number for number in self._found[key] if number > found[rank]]

    def _settle(self, newest: int, now: float) -> int:
        """Give an id that had been given out LAG seconds ago, the last as far as is known."""
        self._settled = max(self._settled, newest - LAG_IDS)
        if not self._newest or now - self._newest[-1][0] >= _SAMPLE:
            self._newest.append((now, newest))
        while self._newest and self._newest[0][0] <= now - LAG:
            self._settled = max(self._settled, self._newest.popleft()[1])
        return self._settled
