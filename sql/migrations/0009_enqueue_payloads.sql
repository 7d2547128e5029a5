-- Many jobs of one kind with the same arguments: what a fan-out or an import calls. Gives their ids in the order of the payloads.
--
-- It costs less than enqueue_many because no array of objects is taken apart, and nothing but the payloads is checked for each. There are no
-- unique keys here: with none, nobody can hold up an insert, so one statement writes all rows. One wrong payload refuses all of them, naming its place.
create function howdah.enqueue_payloads(kind text, payloads jsonb[], queue text default null, priority int default null,
  run_at timestamptz default null, delay interval default null, max_attempts int default null, timeout interval default null,
  subject text default null, expires_at timestamptz default null, headers jsonb default null,
  batch bigint default null, limits text[] default null, fifo_key text default null)
returns setof bigint
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp set jit = off as $$
#variable_conflict use_variable
declare
  problem text[];
  known   howdah.kinds;
  wrong   record;
  due     timestamptz;
  known_only boolean;
begin
  if payloads is null or array_ndims(payloads) > 1 then
    perform howdah.refuse(array['JB001', format('payloads must be an array of JSON objects, not %s', case when payloads is null then 'null' else 'an array of arrays' end),
      'pass jsonb[], as array_agg(…) gives it']);
  end if;
  problem := howdah.argument_problem(kind, '{}', queue, priority, run_at, delay, max_attempts, timeout, null, 'skip', subject, null, batch, limits, fifo_key, expires_at, headers);
  if problem is not null then perform howdah.refuse(problem); end if;
  if batch is not null then perform howdah.join_batch(batch); end if;

  select k.* into known from howdah.kinds k where k.name = kind;
  if not found then
    select s.strict_kinds, s.limited into known_only, known.limited from howdah.settings s;
    if known_only then
      perform howdah.refuse(array['JB004', format('kind %L was never registered', kind), 'run howdah register, or start a worker that has it']);
    end if;
    raise notice 'howdah: kind % was never registered', quote_literal(kind);
  end if;

  select p.place, p.payload into wrong from unnest(payloads) with ordinality p(payload, place)
    where howdah.wrong_argument('kind', p.payload, null, null, null, null, null, null, null, 'skip', null, null, null, null, null, null, null) is not null limit 1;
  if found then
    perform howdah.refuse(howdah.argument_problem('kind', wrong.payload, null, null, null, null, null, null, null, 'skip', null, null, null, null, null, null, null),
                          format('job %s: ', wrong.place));
  end if;
  if known.fields <> '{}' then
    -- The fields' types are read once, and not anew for each payload.
    with field as materialized (
      select f.key, array(select jsonb_array_elements_text(f.value -> 'types')) as types,
             (f.value ->> 'required')::boolean and coalesce((f.value ->> 'since')::timestamptz <= now() - interval '10 minutes', true) as missed
      from jsonb_each(known.fields) f)
    select p.place, p.payload into wrong from unnest(payloads) with ordinality p(payload, place)
      where exists (select from field f where case when p.payload ? f.key then jsonb_typeof(p.payload -> f.key) <> all (f.types) else f.missed end)
      limit 1;
    if found then
      perform howdah.refuse(array['JB003', format('%s: %s', kind, howdah.field_problem(known.fields, wrong.payload, interval '10 minutes')), 'see the schema in howdah.kinds'],
                            format('job %s: ', wrong.place));
    end if;
  end if;
  queue := coalesce(queue, known.queue, 'default');
  if known.limited then
    limits := howdah.with_standing(limits, kind, queue);
  end if;
  due := coalesce(run_at, clock_timestamp() + delay);
  if due <= clock_timestamp() then due := null; end if;

  return query
  insert into howdah.jobs as j (queue, kind, payload, priority, due_at, ready_at, max_attempts, timeout, subject, expires_at, headers, batch, limits, fifo_key)
  select queue, kind, p.payload, coalesce(priority, known.priority, 0), due, coalesce(due, clock_timestamp()), coalesce(max_attempts, known.max_attempts, 3),
         coalesce(timeout, known.timeout), subject, expires_at, headers, batch, limits, fifo_key
  from unnest(payloads) p(payload)
  returning j.id;

  if due is null then perform howdah.wake(queue); else perform howdah.notify('howdah_control', 'due'); end if;
end $$;
