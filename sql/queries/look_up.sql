-- All that is known of the jobs $1; those that are not known have no row. JSON as text, whatever codecs the connection has.
select s.id, s.queue, s.kind, s.state, s.subject, s.priority, s.payload::text, s.attempt, s.max_attempts, s.crashes, s.created_at,
       nullif(s.due_at, 'infinity') as due_at, s.claimed_at, s.started_at, s.finished_at, s.updated_at, s.duration, s.progress::text, s.result::text,
       s.error, s.errors::text, s.worker, s.cancelled_by, s.cancel_reason, s.retried_from, s.unique_key, s.headers::text
from howdah.job_status s where s.id = any ($1::bigint[])
