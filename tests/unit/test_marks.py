"""The watermarks of a worker: nothing that may still come to light is passed over, and looks have a budget."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from howdah.marks import BUSY_LOOK_INTERVAL, DEAR, FIRST_LOOK, LAG, LAG_IDS, LOOK_SHARE, MOST_FOUND, Marks
from howdah.store import LAST_ID, LAST_RANK, Mark, Stretch

QUEUE = "default"


def job(number: int, priority: int = 0, queue: str = QUEUE) -> Any:
    return SimpleNamespace(id=number, priority=priority, queue=queue)


def past(marks: Marks, rank: int = LAST_RANK, queue: str = QUEUE) -> int:
    [stretch] = [one for one in marks.stretches([queue], look=False) if one.rank == rank and one.end == LAST_ID]
    return stretch.past


def test_a_look_walks_a_queue_from_its_start_to_its_end_and_a_claim_from_the_mark_of_each_rank() -> None:
    marks = Marks()
    [stretch] = marks.stretches([QUEUE], look=True)
    assert (stretch.queue, stretch.rank, stretch.past, stretch.upto) == (QUEUE, -1, 0, LAST_RANK)
    stretches = marks.stretches([QUEUE], look=False)
    assert [(stretch.rank, stretch.past, stretch.upto) for stretch in stretches] == [(n, 0, n) for n in range(11)]


def test_a_mark_follows_what_was_claimed_once_its_ids_are_settled() -> None:
    marks = Marks()
    jobs = [job(number) for number in range(1, 11)]
    marks.claimed({QUEUE: 10}, jobs, 1000, look=False, began=0, ended=0)
    assert past(marks) == 0  # a transaction with a smaller id may still be open
    marks.claimed({QUEUE: 10}, [job(n) for n in range(11, 21)], 1000, look=False, began=2 * LAG, ended=2 * LAG)
    assert past(marks) == 20


def test_a_claim_that_came_back_short_moves_its_mark_to_what_was_settled_and_no_further() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 10}, [], 500, look=False, began=0, ended=0)
    marks.claimed({QUEUE: 10}, [], 900, look=False, began=2 * LAG, ended=2 * LAG)
    assert {past(marks, rank) for rank in range(11)} == {500}


def test_a_full_claim_says_nothing_of_the_ranks_behind_its_last_job() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 1}, [], 100, look=False, began=0, ended=0)
    before = {rank: past(marks, rank) for rank in range(11)}
    marks.claimed({QUEUE: 2}, [job(90, 8), job(95, 5)], 100, look=False, began=1, ended=1)
    assert past(marks, 2) == 100
    assert past(marks, 5) == 95
    assert {rank: past(marks, rank) for rank in range(6, 11)} == {rank: before[rank] for rank in range(6, 11)}


def test_a_full_look_that_found_old_jobs_takes_the_mark_down_to_them() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 10}, [], 1000, look=False, began=0, ended=0)
    marks.claimed({QUEUE: 10}, [], 1000, look=False, began=1, ended=1)
    assert past(marks) == 1000
    marks.claimed({QUEUE: 2}, [job(7), job(8)], 1000, look=True, began=2, ended=2)
    assert past(marks) == 8


def test_a_new_set_of_kinds_begins_where_all_kinds_have_come_to_and_goes_its_own_way() -> None:
    whole = Marks()
    whole.claimed({QUEUE: 10}, [], 500, look=False, began=0, ended=0)
    whole.claimed({QUEUE: 10}, [], 900, look=True, began=2 * LAG, ended=2 * LAG + 1)
    some = whole.of_some()
    assert past(some) == 500
    assert some.next_look == whole.next_look
    some.claimed({QUEUE: 10}, [], 1000, look=False, began=9, ended=9)
    assert (past(some), past(whole)) == (900, 500)


def test_queues_have_marks_of_their_own() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 1, "mail": 5}, [], 100, look=False, began=0, ended=0)
    marks.claimed({QUEUE: 1, "mail": 5}, [job(9)], 100, look=False, began=1, ended=1)
    assert past(marks, queue=QUEUE) == 9
    assert past(marks, queue="mail") == 100


def test_a_look_that_found_nothing_is_followed_by_many_times_its_cost_without_one() -> None:
    marks = Marks()
    assert marks.next_look == 0
    marks.claimed({QUEUE: 10}, [], 0, look=True, began=0, ended=0.01)
    marks.claimed({QUEUE: 10}, [], 0, look=True, began=1, ended=1.01)
    assert round(marks.next_look - 1.01, 6) == round(0.01 * LOOK_SHARE, 6)


def test_looks_that_come_back_full_have_the_same_budget() -> None:
    marks = Marks()
    for began in (0.0, 10.0):
        marks.claimed({QUEUE: 1}, [job(1)], 10, look=True, began=began, ended=began + 0.1)
    assert marks.next_look >= 10.1 + 0.1 * LOOK_SHARE - 1e-6


def test_one_look_that_was_slow_by_chance_puts_off_no_other() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 10}, [], 0, look=True, began=0, ended=1)  # the first one plans, and reads cold pages
    assert marks.next_look == 1
    marks.claimed({QUEUE: 10}, [], 0, look=True, began=1, ended=1.001)
    assert marks.next_look < 1.001 + 0.03


def test_a_first_look_that_was_slow_and_came_back_full_is_not_followed_by_another_at_once() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 1}, [job(9)], 10, look=True, began=0, ended=0.3)
    assert round(marks.next_look - 0.3, 6) == round(FIRST_LOOK * LOOK_SHARE, 6)


def test_the_first_claim_moves_its_mark_to_ids_that_are_old_however_fast_they_are_given_out() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 1}, [job(900_000)], 1_000_000, look=True, began=0, ended=0.3)
    assert past(marks) == 900_000
    late = Marks()
    late.claimed({QUEUE: 1}, [job(999_999)], 1_000_000, look=True, began=0, ended=0.3)
    assert past(late) == 1_000_000 - LAG_IDS


def test_while_claims_come_back_full_looks_are_rare_and_never_put_off() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 1}, [job(1)], 10, look=True, began=5, ended=5.001)
    marks.claimed({QUEUE: 1}, [job(2)], 10, look=True, began=6, ended=6.001)
    assert marks.next_look == 6.001 + BUSY_LOOK_INTERVAL
    marks.claimed({QUEUE: 1}, [job(3)], 10, look=False, began=6.1, ended=6.101)
    assert marks.next_look == 6.001 + BUSY_LOOK_INTERVAL


def settled(newest: int = 1000) -> Marks:
    """Give marks that lie at `newest` in every rank."""
    marks = Marks()
    for began in (0.0, 1.0):
        marks.claimed({QUEUE: 10}, [], newest, look=False, began=began, ended=began)
    return marks


def found(*ids: int, rank: int = LAST_RANK) -> list[Mark]:
    return [Mark(QUEUE, rank, number) for number in ids]


def test_looks_are_dear_after_two_that_took_long_and_no_more_after_one_that_did_not() -> None:
    marks = Marks()
    marks.claimed({QUEUE: 10}, [], 0, look=True, began=0, ended=3 * DEAR)
    assert not marks.dear
    marks.claimed({QUEUE: 10}, [], 0, look=True, began=1, ended=1 + 2 * DEAR)
    assert marks.dear
    marks.found([QUEUE], [], began=2, ended=2 + 4 * DEAR)
    assert marks.dear
    assert round(marks.next_look, 6) == round(2 + 4 * DEAR + 2 * DEAR * LOOK_SHARE, 6)
    marks.found([QUEUE], [], began=9, ended=9 + DEAR / 2)
    assert not marks.dear


def test_a_look_beside_the_claims_goes_as_far_as_the_marks() -> None:
    assert Marks().behind([QUEUE]) == []
    marks = settled()
    marks.claimed({QUEUE: 1}, [job(1500, 5)], 2000, look=False, began=2, ended=2)
    assert marks.behind([QUEUE, "mail"]) == [Mark(QUEUE, rank, 1000) for rank in range(11)]


def test_what_was_found_is_claimed_by_its_ids_each_rank_before_what_lies_ahead_in_it() -> None:
    marks = settled()
    marks.found([QUEUE], [*found(7, 9, rank=3), *found(8)], began=2, ended=2)
    stretches = marks.stretches([QUEUE], look=False)
    assert [one for one in stretches if one.end != LAST_ID] == [
        Stretch(QUEUE, 3, 6, 3, 7),
        Stretch(QUEUE, 3, 8, 3, 9),
        Stretch(QUEUE, LAST_RANK, 7, LAST_RANK, 8),
    ]
    assert [(one.rank, one.end != LAST_ID) for one in stretches if one.rank in {3, LAST_RANK}] == [
        (3, True),
        (3, True),
        (3, False),
        (LAST_RANK, True),
        (LAST_RANK, False),
    ]
    assert past(marks) == past(marks, 3) == 1000


def test_what_was_found_is_asked_for_until_a_claim_has_come_past_it() -> None:
    marks = settled()
    marks.found([QUEUE], [*found(5, rank=3), *found(7, 8, 9)], began=2, ended=2)
    marks.claimed({QUEUE: 2}, [job(5, LAST_RANK - 3), job(7)], 1000, look=False, began=3, ended=3)
    assert [one.end for one in marks.stretches([QUEUE], look=False) if one.end != LAST_ID] == [8, 9]
    assert past(marks) == 1000
    marks.claimed({QUEUE: 9}, [job(9)], 1000, look=False, began=4, ended=4)  # the other was somebody else's
    assert all(one.end == LAST_ID for one in marks.stretches([QUEUE], look=False))


def test_a_look_knows_better_than_the_one_before_it() -> None:
    marks = settled()
    marks.found([QUEUE], found(7, 8), began=2, ended=2)
    marks.found(["mail"], [], began=3, ended=3)
    assert [one.end for one in marks.stretches([QUEUE], look=False) if one.end != LAST_ID] == [7, 8]
    marks.found([QUEUE], found(6, 8), began=4, ended=4)
    assert [one.end for one in marks.stretches([QUEUE], look=False) if one.end != LAST_ID] == [6, 8]


def test_where_very_many_lie_behind_the_mark_goes_down_to_the_first_of_the_last_rank() -> None:
    marks = settled(10_000)
    marks.found([QUEUE], [*found(2, 3, rank=4), *found(*range(50, 50 + MOST_FOUND - 2))], began=2, ended=2)
    assert past(marks) == 49
    assert [one.end for one in marks.stretches([QUEUE], look=False) if one.end != LAST_ID] == [2, 3]
    assert past(marks, 4) == 10_000


@given(
    st.lists(
        st.tuples(st.integers(0, 10), st.integers(1, 5), st.booleans(), st.floats(0, 0.2)), min_size=1, max_size=60
    )
)
def test_no_mark_ever_passes_a_job_that_was_there_and_not_claimed(
    steps: list[tuple[int, int, bool, float]],
) -> None:
    """A model of one queue without late commits: every unclaimed job lies in front of its rank's mark."""
    marks, ready, clock = Marks(), [], 0.0
    for last, (priority, room, look, pause) in enumerate(steps, start=1):
        ready.append(job(last, priority))
        clock += pause
        stretches = {stretch.rank: stretch.past for stretch in marks.stretches([QUEUE], look=look)}
        seen = [one for one in ready if look or one.id > stretches[LAST_RANK - one.priority]]
        assert len(seen) == len(ready)
        claimed = sorted(seen, key=lambda one: (-one.priority, one.id))[:room]
        ready = [one for one in ready if one not in claimed]
        marks.claimed({QUEUE: room}, claimed, last, look=look, began=clock, ended=clock)
