-- One event of key $2, for the coalescing: $1 is the text of a JSON object with the other arguments of howdah.enqueue_coalesced.
select howdah.enqueue_coalesced(a.kind, coalesce(a.payload, '{}'), $2, coalesce(a.delay, '0'), a.queue, a.priority, a.subject)
from jsonb_to_record($1::text::jsonb) a(kind text, payload jsonb, delay interval, queue text, priority int, subject text)
