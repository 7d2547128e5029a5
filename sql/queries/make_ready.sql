-- Makes at most $1 due jobs claimable, and one job of all visible events of each of at most $1 ripe keys; tells how many of both, and in how
-- many seconds the next job is due, the next key is ripe, and a schedule wants to be looked at by somebody who leaves it to others for $2
-- seconds (null: none; $2 null: never); and whether any limited job may be there. What keeps a schedule from firing is tried again every
-- minute. One statement: an idle worker asks this for ever.
select p.promoted, e.made, p.next_in as next_job, e.next_in as next_event,
  (select extract(epoch from min(greatest(coalesce(s.next_at, s.done_until), s.problem_at + interval '1 minute')) - clock_timestamp())::float8 + $2::float8
   from howdah.schedules s where s.paused_at is null) as next_schedule,
  exists (select from howdah.openings) as limited
from howdah.promote($1) p, howdah.coalesce_events($1) e
