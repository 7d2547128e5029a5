-- Many jobs that differ in nothing but the payload: $1 is the text of a JSON object with the arguments that they share, $2 of an
-- array of payloads. All ids in one array, in the order of the payloads: a row for each costs as much as checking it.
select array(select howdah.enqueue_payloads(a.kind, array(select jsonb_array_elements($2::text::jsonb)), queue => a.queue,
  priority => a.priority, run_at => a.run_at, delay => a.delay, max_attempts => a.max_attempts, timeout => a.timeout,
  subject => a.subject, expires_at => a.expires_at, headers => a.headers, batch => a.batch, limits => a.limits, fifo_key => a.fifo_key)) as ids
from jsonb_to_record($1::text::jsonb) a(kind text, queue text, priority int, run_at timestamptz, delay interval,
  max_attempts int, timeout interval, subject text, expires_at timestamptz, headers jsonb, batch bigint, limits text[], fifo_key text)
