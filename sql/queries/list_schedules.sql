-- Every schedule, or the one named $1; durations in seconds, and whether a living worker has a handler for its kind.
select s.name, s.kind, s.payload, s.options, s.cron, s.time_zone, s.missed, s.overlap, extract(epoch from s.jitter)::float8 as jitter, s.declared,
  s.created_at, s.next_at, s.paused_at, s.paused_by, s.problem, s.last_slot, s.last_at, s.last_job, s.fired, s.missed_slots, s.overlapped,
  exists (select from howdah.workers w where s.kind = any (w.kinds) and w.beat_at >= clock_timestamp() - w.ttl) as served,
  extract(epoch from s.overdue)::float8 as overdue_seconds, clock_timestamp() as asked_at
from howdah.schedule_status s where $1::text is null or s.name = $1 order by s.name
