-- The $1 jobs that have run longest, among the first of the lanes, with what they report; then those in hand.
select f.id, f.queue, f.kind, s.attempt, s.max_attempts, s.subject, w.name as worker, s.progress::text as progress,
  extract(epoch from clock_timestamp() - f.started_at)::float8 as running,
  extract(epoch from clock_timestamp() - f.claimed_at)::float8 as held
from (select f.* from howdah.fronts() f where f.lease is not null order by f.started_at nulls last, f.claimed_at limit $1) f
left join howdah.workers w on w.id = f.leased_by left join lateral (select s.* from howdah.job_status s where s.id = f.id limit 1) s on true
order by f.started_at nulls last, f.claimed_at
