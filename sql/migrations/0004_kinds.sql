-- What workers tell of their handlers, and what everybody may ask.

-- Registers kinds: an array of {"name", "fields", "schema", "queue", "priority", "max_attempts", "timeout" (seconds),
-- "secret"}. A revision older than the one on record changes nothing, so that in a rolling deploy the newest code wins. A field
-- that a known kind requires from now on carries the time, and is only warned about for ten minutes.
create function howdah.register(kinds jsonb, revision bigint) returns void
language sql security definer set search_path = pg_catalog, howdah, pg_temp as $$
insert into howdah.kinds as k (name, fields, schema, queue, priority, max_attempts, timeout, secret, revision, limited)
select n.name, coalesce(n.fields, '{}'), n.schema, n.queue, n.priority, n.max_attempts, n.timeout * interval '1 second', coalesce(n.secret, '{}'), register.revision,
  exists (select from howdah.limits l where l.name like 'queue:%') or (howdah.limit_for('kind:' || n.name)).name is not null
from jsonb_to_recordset(register.kinds) as n(name text, fields jsonb, schema jsonb, queue text, priority smallint, max_attempts smallint, timeout float8, secret text[])
order by n.name
on conflict (name) do update set
  fields = (
    select coalesce(jsonb_object_agg(f.key, case
      when (f.value ->> 'required')::boolean and not coalesce((k.fields -> f.key ->> 'required')::boolean, false)
        then f.value || jsonb_build_object('since', clock_timestamp())
      when k.fields -> f.key ? 'since' then f.value || jsonb_build_object('since', k.fields -> f.key -> 'since')
      else f.value end), '{}')
    from jsonb_each(excluded.fields) f),
  schema = excluded.schema, queue = excluded.queue, priority = excluded.priority, max_attempts = excluded.max_attempts,
  timeout = excluded.timeout, secret = excluded.secret, revision = excluded.revision,
  registered_at = case when k.fields is distinct from excluded.fields then clock_timestamp() else k.registered_at end
where k.revision <= excluded.revision
$$;

-- Live jobs by queue, kind and state.
create function howdah.stats() returns table (queue text, kind text, state text, jobs bigint, oldest interval)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp as $$
select j.queue, j.kind, j.state, count(*), greatest(clock_timestamp() - min(j.ready_at), interval '0') from howdah.jobs j group by 1, 2, 3 order by 1, 2, 3 $$;
