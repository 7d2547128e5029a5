-- The jobs, live and ended, that everything given here fits; null asks for nothing. $1 states, $2 live ones, $3 ended ones: whether
-- the states hold any; $4 queue, $5 kind, $6 subject, $7 and $8 touched since and before, $9 an error's fingerprint, its
-- type, or a part of its message.
-- An error's signature is its message without what differs from job to job: quoted words, UUIDs, hex and other numbers; the
-- fingerprint is a hash of that and the type.
-- $2 and $3 spare one half of the view: without them a look for dead jobs would read every live one. $1 with nothing but 'dead' goes by
-- the index job_history_dead.
select j.*, e.type as error_type, s.signature, f.fingerprint
from howdah.job_status j
cross join lateral (select j.errors -> -1 ->> 'type' as type) e
cross join lateral (
  select left(regexp_replace(left(j.error, 1000),
    $re$(?<!\w)'[^']*'(?!\w)|(?<!\w)"[^"]*"(?!\w)|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\m[0-9a-f]{8,}\M|\d+(\.\d+)*$re$,
    '#', 'gi'), 200) as signature) s
cross join lateral (
  select left(encode(sha256(convert_to(coalesce(e.type, '') || ' ' || s.signature, 'UTF8')), 'hex'), 8) as fingerprint) f
where ($1::text[] is null or j.state = any ($1))
  and ($2::boolean or j.finished_at is not null) and ($3::boolean or j.finished_at is null)
  and ($4::text is null or j.queue = $4) and ($5::text is null or j.kind = $5) and ($6::text is null or j.subject = $6)
  and ($7::timestamptz is null or j.updated_at >= $7) and ($8::timestamptz is null or j.updated_at < $8)
  and ($9::text is null or f.fingerprint = $9 or e.type = $9 or position(lower($9) in lower(j.error)) > 0)
