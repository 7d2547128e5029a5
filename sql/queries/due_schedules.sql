-- The schedules that somebody who leaves them to others for $1 seconds looks at now, at most $2, the latest first; jitter in seconds.
select s.name, s.version, s.cron, s.time_zone, s.missed, extract(epoch from s.jitter)::float8 as jitter, s.done_until, s.problem, n.now
from (select clock_timestamp() as now) n
join howdah.schedules s on greatest(coalesce(s.next_at, s.done_until), s.problem_at + interval '1 minute') <= n.now - $1::float8 * interval '1 second'
where s.paused_at is null order by coalesce(s.next_at, s.done_until), s.name limit $2
