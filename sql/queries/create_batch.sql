-- Opens a batch and gives the id of the job behind it: $1 is the text of a JSON object with the argument names of howdah.create_batch.
select howdah.create_batch(a.kind, coalesce(a.payload, '{}'), queue => a.queue, priority => a.priority, max_attempts => a.max_attempts,
  timeout => a.timeout, unique_key => a.unique_key, subject => a.subject, headers => a.headers) as id
from jsonb_to_record($1::text::jsonb) a(kind text, payload jsonb, queue text, priority int, max_attempts int, timeout interval,
  unique_key text, subject text, headers jsonb)
