-- One job, in the caller's transaction: $1 is the text of a JSON object with the argument names of howdah.enqueue. One text,
-- so that it works over any driver and whatever codecs the application has set.
select e.id, e.created
from jsonb_to_record($1::text::jsonb) a(kind text, payload jsonb, queue text, priority int, run_at timestamptz, delay interval,
  max_attempts int, timeout interval, unique_key text, on_conflict text, subject text, depends_on bigint[], batch bigint,
  limits text[], fifo_key text, expires_at timestamptz, headers jsonb, on_failed_dependency text),
howdah.enqueue(a.kind, coalesce(a.payload, '{}'), queue => a.queue, priority => a.priority, run_at => a.run_at, delay => a.delay,
  max_attempts => a.max_attempts, timeout => a.timeout, unique_key => a.unique_key, on_conflict => coalesce(a.on_conflict, 'skip'),
  subject => a.subject, depends_on => a.depends_on, batch => a.batch, limits => a.limits, fifo_key => a.fifo_key,
  expires_at => a.expires_at, headers => a.headers,
  on_failed_dependency => coalesce(a.on_failed_dependency, 'cancel')) e
