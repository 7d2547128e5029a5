-- The newest $2 of the jobs that ended at or after $1, oldest first, for the view of `howdah dev`.
select * from (
  select h.id, h.queue, h.kind, h.state, h.attempt, h.max_attempts, left(h.result::text, 2000) as result, h.errors -> -1 ->> 'message' as error,
         h.cancel_reason, h.finished_at, extract(epoch from h.finished_at - h.started_at)::float8 as took
  from howdah.job_history h where h.finished_at >= $1 order by h.finished_at desc, h.id desc limit $2) newest
order by finished_at, id
