-- How work comes in: enqueue, enqueue_many, enqueue_coalesced.
--
-- Refusals carry a SQLSTATE of class JB, a message that names the field, and a hint:
--   JB001 payload    JB002 argument    JB003 field of a registered kind    JB004 kind never registered (strict_kinds)
--   JB005 unique_key held    JB006 not available yet    JB007 no such job, or not in that state    JB008 lost lease

-- Whether a job can name these limits. A function of its own: with a subquery in it, argument_problem would not be inlined.
create function howdah.are_limits(limits text[]) returns boolean language sql immutable parallel safe as $$
select cardinality(limits) <= 20 and coalesce(array_ndims(limits), 1) = 1 and not exists (
  select from unnest(limits) l(name) where l.name is null or length(l.name) not between 1 and 200 or l.name ~ '[[:cntrl:]*]|^(fifo|kind|queue):') $$;

-- The first of these arguments that is wrong, or null. A bare CASE, so that it is inlined, and without the words for it: every
-- call makes it ready anew, and ready for the words it would take three times as long. A bounded repetition in a regular
-- expression would cost forty times as much as length().
create function howdah.wrong_argument(kind text, payload jsonb, queue text, priority int, run_at timestamptz, delay interval,
  max_attempts int, timeout interval, unique_key text, on_conflict text, subject text, depends_on bigint[], batch bigint,
  limits text[], fifo_key text, expires_at timestamptz, headers jsonb, on_failed_dependency text default 'cancel')
returns text language sql stable parallel safe as $$
select case
  when kind is null or length(kind) not between 1 and 100 or kind ~ '[[:cntrl:]]' then 'kind'
  when payload is null or jsonb_typeof(payload) <> 'object' then 'payload'
  -- Only long numbers make text of few bytes, and eight of the longest, which 1 MiB takes, have no room in 128; unless they came compressed.
  when (pg_column_size(payload) > 128 or pg_column_compression(payload) is not null) and octet_length(payload::text) > 1048576 then 'size of payload'
  when length(queue) not between 1 and 100 or queue ~ '[[:cntrl:]]' then 'queue'
  when priority not between 0 and 10 then 'priority'
  when run_at is not null and delay is not null then 'run_at and delay'
  when run_at in ('infinity', '-infinity') then 'run_at'
  when not isfinite(delay) then 'delay'
  when expires_at in ('infinity', '-infinity') then 'expires_at'
  when max_attempts not between 1 and 1000 then 'max_attempts'
  when timeout <= interval '0' then 'timeout'
  when on_conflict is null or on_conflict not in ('skip', 'replace', 'error') then 'on_conflict'
  when length(unique_key) not between 1 and 500 then 'unique_key'
  when length(subject) not between 1 and 500 then 'subject'
  when jsonb_typeof(headers) <> 'object' then 'headers'
  when octet_length(headers::text) > 65536 then 'size of headers'
  when cardinality(depends_on) > 1000 then 'number of depends_on'
  when array_position(depends_on, null) is not null then 'depends_on'
  when on_failed_dependency is null or on_failed_dependency not in ('cancel', 'run') then 'on_failed_dependency'
  when limits is not null and not howdah.are_limits(limits) then 'limits'
  when length(fifo_key) not between 1 and 190 or fifo_key ~ '[[:cntrl:]]' then 'fifo_key'
end $$;

-- What is wrong with these arguments: {sqlstate, message, hint}, or null.
create function howdah.argument_problem(kind text, payload jsonb, queue text, priority int, run_at timestamptz, delay interval,
  max_attempts int, timeout interval, unique_key text, on_conflict text, subject text, depends_on bigint[], batch bigint,
  limits text[], fifo_key text, expires_at timestamptz, headers jsonb, on_failed_dependency text default 'cancel')
returns text[] language sql stable parallel safe as $$
select case howdah.wrong_argument(kind, payload, queue, priority, run_at, delay, max_attempts, timeout, unique_key, on_conflict, subject,
                                  depends_on, batch, limits, fifo_key, expires_at, headers, on_failed_dependency)
  when 'kind' then array['JB002', format('kind is %L', left(kind, 100)), 'one to 100 characters, none of them a control character']
  when 'payload' then array['JB001', format('payload must be a JSON object, not %s', coalesce(jsonb_typeof(payload), 'null')), 'pass jsonb_build_object(…)']
  when 'size of payload' then array['JB001', format('payload has %s bytes, more than 1 MiB', octet_length(payload::text)), 'store the data elsewhere and pass its key']
  when 'queue' then array['JB002', format('queue is %L', left(queue, 100)), 'one to 100 characters, none of them a control character']
  when 'priority' then array['JB002', format('priority is %s', priority), '0 to 10; 10 is the most urgent']
  when 'run_at and delay' then array['JB002', 'run_at and delay are both given', 'pass one of them']
  when 'run_at' then array['JB002', format('run_at is %s', run_at), 'a time that comes']
  when 'delay' then array['JB002', format('delay is %s', delay), 'a time that comes']
  when 'expires_at' then array['JB002', format('expires_at is %s', expires_at), 'a time that comes, or null for never']
  when 'max_attempts' then array['JB002', format('max_attempts is %s', max_attempts), '1 to 1000']
  when 'timeout' then array['JB002', format('timeout is %s', timeout), 'more than nothing']
  when 'on_conflict' then array['JB002', format('on_conflict is %L', on_conflict), 'skip, replace or error']
  when 'unique_key' then array['JB002', format('unique_key has %s characters', length(unique_key)), '1 to 500']
  when 'subject' then array['JB002', format('subject has %s characters', length(subject)), '1 to 500']
  when 'headers' then array['JB002', format('headers must be a JSON object, not %s', jsonb_typeof(headers)), 'pass jsonb_build_object(…)']
  when 'size of headers' then array['JB002', format('headers have %s bytes, more than 64 KiB', octet_length(headers::text)), 'data belongs into the payload']
  when 'number of depends_on' then array['JB002', format('depends_on names %s jobs', cardinality(depends_on)), 'at most 1000; for more, a batch']
  when 'depends_on' then array['JB002', 'depends_on holds a null', 'ids of jobs']
  when 'on_failed_dependency' then array['JB002', format('on_failed_dependency is %L', on_failed_dependency), 'cancel or run']
  when 'limits' then array['JB002', format('limits is %s', left(limits::text, 300)), 'at most 20 names of 1 to 200 characters, without *, none of which begins with kind:, queue: or fifo:']
  when 'fifo_key' then array['JB002', format('fifo_key is %L', left(fifo_key, 190)), '1 to 190 characters, none of them a control character']
end $$;

-- A field of a payload that does not fit its kind, as a sentence, or null. A field that became required less than `grace`
-- ago is not yet missed: during a rolling deploy the old callers still send the old payload.
-- Not in plain SQL: before PostgreSQL 18 that would be planned anew in every transaction.
create function howdah.field_problem(fields jsonb, payload jsonb, grace interval)
returns text language plpgsql stable parallel safe as $$
declare
  name  text;
  field jsonb;
begin
  select f.key, f.value into name, field from jsonb_each(fields) f
  where case when payload ? f.key then not (f.value -> 'types') ? jsonb_typeof(payload -> f.key)
        else (f.value ->> 'required')::boolean and coalesce((f.value ->> 'since')::timestamptz <= now() - grace, true) end
  limit 1;
  if not found then return null; end if;
  if not payload ? name then return format('field %L is missing', name); end if;
  return format('field %L must be %s, not %s', name, (select string_agg(t, ' or ') from jsonb_array_elements_text(field -> 'types') t), jsonb_typeof(payload -> name));
end $$;

-- Raises what argument_problem found; `place` says which of many jobs.
-- Strict: with no problem it is null and costs nothing.
create function howdah.refuse(problem text[], place text default '') returns void language plpgsql strict as $$
begin
  raise exception using errcode = problem[1], message = format('howdah: %s%s', place, problem[2]), hint = problem[3];
end $$;

-- Names the first argument of many jobs that cannot be read as its type. Slow, and only called once one is known to be there.
create function howdah.refuse_types(jobs jsonb) returns void language plpgsql as $$
declare
  argument record;
begin
  for argument in select j.place, a.key, a.value from jsonb_array_elements(jobs) with ordinality j(job, place), jsonb_each(j.job) a order by j.place, a.key loop
    begin
      perform from jsonb_to_record(jsonb_build_object(argument.key, argument.value)) as (priority int, run_at timestamptz, delay interval,
        max_attempts int, timeout interval, depends_on bigint[], batch bigint, limits text[], expires_at timestamptz);
    exception when data_exception then
      perform howdah.refuse(array['JB002', format('%s is %s', argument.key, argument.value), sqlerrm], format('job %s: ', argument.place));
    end;
  end loop;
end $$;

-- Wakes the workers of a queue, if one of them sleeps. NOTIFY takes a lock that all commits share, so a busy system
-- must not pay for it; a wake that is missed costs at most one poll.
create function howdah.wake(queue text) returns void language plpgsql as $$
begin
  if exists (select from howdah.workers w where w.sleeps and wake.queue = any (w.queues)) then
    perform howdah.notify('howdah', queue);
  end if;
end $$;

-- Wakes every worker that sleeps: for calls that touch many queues at once.
create function howdah.wake_all() returns void language sql as $$
select howdah.notify('howdah', q.name) from (select distinct unnest(w.queues) as name from howdah.workers w where w.sleeps) q $$;

-- One job, in the caller's transaction. A live job (queued or running) with the same unique_key: `skip` gives its id and
-- created = false; `replace` gives a queued one the new payload, time and priority, and leaves a running one alone;
-- `error` raises. Null means the kind's registered default, then 3 attempts, queue default, priority 0.
-- Pinned, because the look for the earliest due job would read the whole table if statistics know of none; and planned once,
-- because the checks look so cheap with the arguments at hand that every call would plan them anew.
create function howdah.enqueue(kind text, payload jsonb default '{}', queue text default null, priority int default null,
  run_at timestamptz default null, delay interval default null, max_attempts int default null, timeout interval default null,
  unique_key text default null, on_conflict text default 'skip', subject text default null, depends_on bigint[] default null,
  batch bigint default null, limits text[] default null, fifo_key text default null, expires_at timestamptz default null,
  headers jsonb default null, on_failed_dependency text default 'cancel', out id bigint, out created boolean)
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  wrong   text;
  known   howdah.kinds;
  holder  record;
  home    text;
  due     timestamptz;
  known_only boolean;
begin
  -- Most calls give a kind that is known and a payload that fits it: one statement, for PL/pgSQL makes each ready anew in every transaction.
  -- Whatever else there is to say of a job is said below.
  if num_nonnulls(queue, priority, run_at, delay, max_attempts, timeout, unique_key, subject, depends_on, batch, limits, fifo_key, expires_at, headers) = 0
     and on_conflict = 'skip' and on_failed_dependency = 'cancel' then
    insert into howdah.jobs (queue, kind, payload, priority, ready_at, max_attempts, timeout, limits)
    select coalesce(k.queue, 'default'), k.name, enqueue.payload, coalesce(k.priority, 0), clock_timestamp(), coalesce(k.max_attempts, 3), k.timeout,
           case when k.limited then howdah.with_standing(null, k.name, coalesce(k.queue, 'default')) end
    from howdah.kinds k
    where k.name = enqueue.kind
      and howdah.wrong_argument('kind', enqueue.payload, null, null, null, null, null, null, null, 'skip', null, null, null, null, null, null, null) is null
      and (k.fields = '{}' or howdah.field_problem(k.fields, enqueue.payload, interval '0') is null)
    returning id, queue into enqueue.id, enqueue.queue;
    if found then
      created := true;
      perform howdah.wake(queue);
      return;
    end if;
  end if;

  wrong := howdah.wrong_argument(kind, payload, queue, priority, run_at, delay, max_attempts, timeout, unique_key, on_conflict, subject,
                                 depends_on, batch, limits, fifo_key, expires_at, headers, on_failed_dependency);
  if wrong is not null then
    perform howdah.refuse(howdah.argument_problem(kind, payload, queue, priority, run_at, delay, max_attempts, timeout, unique_key,
      on_conflict, subject, depends_on, batch, limits, fifo_key, expires_at, headers, on_failed_dependency));
  end if;
  if batch is not null then perform howdah.join_batch(batch); end if;

  select k.* into known from howdah.kinds k where k.name = enqueue.kind;
  if not found then
    select s.strict_kinds, s.limited into known_only, known.limited from howdah.settings s;
    if known_only then
      perform howdah.refuse(array['JB004', format('kind %L was never registered', kind), 'run howdah register, or start a worker that has it']);
    end if;
    raise notice 'howdah: kind % was never registered', quote_literal(kind);
  elsif known.fields <> '{}' then
    wrong := howdah.field_problem(known.fields, payload, interval '10 minutes');
    if wrong is not null then
      perform howdah.refuse(array['JB003', format('%s: %s', kind, wrong), 'see the schema in howdah.kinds']);
    elsif known.registered_at > now() - interval '10 minutes' then
      wrong := howdah.field_problem(known.fields, payload, interval '0');
      if wrong is not null then raise warning 'howdah: %: %, which will soon be refused', kind, wrong; end if;
    end if;
  end if;
  queue := coalesce(queue, known.queue, 'default');
  priority := coalesce(priority, known.priority, 0);
  max_attempts := coalesce(max_attempts, known.max_attempts, 3);
  timeout := coalesce(timeout, known.timeout);
  if known.limited then
    limits := howdah.with_standing(limits, kind, queue);
  end if;
  due := coalesce(run_at, clock_timestamp() + delay);
  if due <= clock_timestamp() then due := null; end if;

  loop
    insert into howdah.jobs (queue, kind, payload, priority, due_at, ready_at, max_attempts, timeout, unique_key, subject, expires_at, headers, batch, depends_on, limits, fifo_key)
    values (enqueue.queue, enqueue.kind, enqueue.payload, enqueue.priority, due, coalesce(due, clock_timestamp()), enqueue.max_attempts,
            enqueue.timeout, enqueue.unique_key, enqueue.subject, enqueue.expires_at, enqueue.headers, enqueue.batch, enqueue.depends_on, enqueue.limits, enqueue.fifo_key)
    on conflict (unique_key) where unique_key is not null do nothing
    returning id into enqueue.id;
    created := found;
    exit when created;

    if on_conflict = 'error' then
      perform howdah.refuse(array['JB005', format('a live job has the unique_key %L', unique_key), 'on_conflict => ''skip'' gives its id']);
    end if;
    select j.id, j.lease into holder from howdah.jobs j where j.unique_key = enqueue.unique_key;
    continue when not found;                       -- it ended between the two statements
    id := holder.id;
    exit when on_conflict = 'skip' or holder.lease is not null;
    update howdah.jobs j set payload = enqueue.payload, priority = enqueue.priority,
      due_at = case when j.due_at = 'infinity' then j.due_at else due end, ready_at = coalesce(due, clock_timestamp()),
      attempt = 0, max_attempts = enqueue.max_attempts, timeout = enqueue.timeout, expires_at = enqueue.expires_at
    where j.id = holder.id and j.lease is null
    returning j.queue into home;
    queue := coalesce(home, queue);                -- a job stays in its queue, and that one is woken
    exit when home is not null;                               -- else it was claimed or ended meanwhile: look again
  end loop;

  if created and cardinality(depends_on) > 0 then  -- apart: `null and f()` would call f
    if howdah.depend(id, depends_on, on_failed_dependency = 'cancel') then
      return;                                      -- it waits; whoever ends the last of the others lets it loose
    end if;
  end if;
  if created or on_conflict = 'replace' then
    if due is null then
      perform howdah.wake(queue);
    elsif not exists (select from howdah.jobs j where j.due_at > now() and j.due_at < due) then
      perform howdah.notify('howdah_control', 'due');  -- it is the earliest to come: somebody's alarm may be set too late
    end if;
  end if;
end $$;

-- Many jobs in one call: an array of objects with enqueue's argument names. One wrong job refuses all of them, naming
-- its place. Keyed jobs are taken in the order of their keys, so that two callers with the same keys cannot deadlock.
--
-- What many jobs say beside their payloads is the same for most of them, as a rule: a head, which is read, looked up and
-- checked once for all jobs that have it.
create function howdah.enqueue_many(jobs jsonb)
returns table (ordinal bigint, id bigint, created boolean)
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp set jit = off as $$
#variable_conflict use_column
declare
  heads jsonb;
  wrong record;
  known_only boolean;
  any_limits boolean;
begin
  select s.strict_kinds, s.limited into known_only, any_limits from howdah.settings s;
  if jobs is null or jsonb_typeof(jobs) <> 'array' then
    perform howdah.refuse(array['JB001', format('jobs must be a JSON array, not %s', coalesce(jsonb_typeof(jobs), 'null')), 'pass jsonb_build_array(…)']);
  end if;
  select coalesce(jsonb_agg(h.head), '[]') into heads from (
    select distinct case jsonb_typeof(e.job) when 'object' then e.job - 'payload' else e.job end as head from jsonb_array_elements(jobs) e(job)) h;
  select h.head, k.name into wrong from jsonb_array_elements(heads) h(head)
    left join lateral (select key as name from jsonb_object_keys(case jsonb_typeof(h.head) when 'object' then h.head else '{}' end) key
      where key <> all (array['kind', 'queue', 'priority', 'run_at', 'delay', 'max_attempts', 'timeout', 'unique_key', 'on_conflict',
        'subject', 'depends_on', 'batch', 'limits', 'fifo_key', 'expires_at', 'headers', 'on_failed_dependency']) limit 1) k on true
    where jsonb_typeof(h.head) <> 'object' or k.name is not null limit 1;
  if found then
    perform howdah.refuse(array['JB002', case jsonb_typeof(wrong.head) when 'object' then format('has an unknown argument %L', wrong.name)
        else format('must be a JSON object, not %s', jsonb_typeof(wrong.head)) end, 'the argument names of howdah.enqueue'],
      format('job %s ', (select min(e.place) from jsonb_array_elements(jobs) with ordinality e(job, place)
        where case jsonb_typeof(e.job) when 'object' then e.job - 'payload' else e.job end = wrong.head)));
  end if;
  begin                                 -- read once before anything is written: a subtransaction that writes would cost an id
    perform from jsonb_to_recordset(heads) as (kind text, queue text, priority int, run_at timestamptz, delay interval,
      max_attempts int, timeout interval, unique_key text, on_conflict text, subject text, depends_on bigint[], batch bigint,
      limits text[], fifo_key text, expires_at timestamptz, headers jsonb, on_failed_dependency text);
  exception when data_exception then
    perform howdah.refuse_types(jobs);
    raise;
  end;

  perform howdah.join_batch(b.batch) from (       -- before the jobs are inserted, so that it stays open until they are committed
    select distinct (h.head ->> 'batch')::bigint as batch from jsonb_array_elements(heads) h(head) where h.head ->> 'batch' is not null order by 1) b;

  return query
  with given as materialized (
    select g.*, coalesce(g.on_conflict, 'skip') as conflict, coalesce(g.on_failed_dependency, 'cancel') as failed_dependency, w.wanted,
           case when w.wanted > clock_timestamp() then w.wanted end as due, k.fields as known_fields, f.names, f.types, f.missed,
           coalesce(g.queue, k.queue, 'default') as home, coalesce(g.priority, k.priority, 0) as rank,
           coalesce(g.max_attempts, k.max_attempts, 3) as most, coalesce(g.timeout, k.timeout) as patience,
           case when coalesce(k.limited, any_limits) then howdah.with_standing(g.limits, g.kind, coalesce(g.queue, k.queue, 'default')) else g.limits end as keys,
           coalesce(
             howdah.argument_problem(g.kind, '{}', g.queue, g.priority, g.run_at, g.delay, g.max_attempts, g.timeout, g.unique_key, coalesce(g.on_conflict, 'skip'),
               g.subject, g.depends_on, g.batch, g.limits, g.fifo_key, g.expires_at, g.headers, coalesce(g.on_failed_dependency, 'cancel')),
             case when k.name is null and known_only then
               array['JB004', format('kind %L was never registered', g.kind), 'run howdah register, or start a worker that has it'] end) as problem
    from rows from (jsonb_to_recordset(heads) as (kind text, queue text, priority int, run_at timestamptz, delay interval,
        max_attempts int, timeout interval, unique_key text, on_conflict text, subject text, depends_on bigint[], batch bigint,
        limits text[], fifo_key text, expires_at timestamptz, headers jsonb, on_failed_dependency text), jsonb_array_elements(heads)) with ordinality
      as g(kind, queue, priority, run_at, delay, max_attempts, timeout, unique_key, on_conflict, subject, depends_on, batch,
        limits, fifo_key, expires_at, headers, on_failed_dependency, head, number)
    cross join lateral (select coalesce(g.run_at, clock_timestamp() + g.delay) as wanted) w
    left join howdah.kinds k on k.name = g.kind
    left join lateral (
      select array_agg(f.key) as names, array_agg(f.value -> 'types') as types,
             array_agg((f.value ->> 'required')::boolean and coalesce((f.value ->> 'since')::timestamptz <= now() - interval '10 minutes', true)) as missed
      from jsonb_each(k.fields) f) f on k.fields <> '{}'),
  checked as materialized (
    select j.place, j.new_id, j.payload, g.number, g.home, g.kind, g.rank, g.due, g.most, g.patience, g.subject, g.expires_at, g.headers, g.batch, g.keys, g.fifo_key, coalesce(g.problem,
             case when howdah.wrong_argument('kind', j.payload, null, null, null, null, null, null, null, 'skip', null, null, null, null, null, null, null) is not null then
               howdah.argument_problem('kind', j.payload, null, null, null, null, null, null, null, 'skip', null, null, null, null, null, null, null) end,
             case when g.names is not null and exists (
                 select from unnest(g.names, g.types, g.missed) f(name, types, missed)
                 where case when j.payload ? f.name then not f.types ? jsonb_typeof(j.payload -> f.name) else f.missed end) then
               array['JB003', g.kind || ': ' || howdah.field_problem(g.known_fields, j.payload, interval '10 minutes'), 'see the schema in howdah.kinds'] end
           ) as wrong
    from (                              -- numbered before the join, so that ids follow the array's order; who may meet another one gets no number yet
      select e.place, e.job - 'payload' as head, coalesce(nullif(e.job -> 'payload', 'null'), '{}') as payload,
             case when not e.job ?| array['unique_key', 'depends_on'] then nextval('howdah.jobs_id_seq') end as new_id
      from jsonb_array_elements(jobs) with ordinality e(job, place)) j
    join given g on g.head = j.head),
  fresh as (
    insert into howdah.jobs (id, queue, kind, payload, priority, due_at, ready_at, max_attempts, timeout, subject, expires_at, headers, batch, limits, fifo_key)
    overriding system value
    select c.new_id, c.home, c.kind, c.payload, c.rank, c.due, coalesce(c.due, clock_timestamp()), c.most, c.patience, c.subject, c.expires_at, c.headers, c.batch, c.keys, c.fifo_key
    from checked c
    where c.new_id is not null and (c.wrong is null or howdah.refuse(c.wrong, format('job %s: ', c.place)) is null)
    order by c.place)
  select c.place, c.new_id, true from checked c where c.new_id is not null
  union all
  select c.place, e.id, e.created
  from (select k.place, k.payload, g.* from checked k join given g using (number)
        where k.new_id is null and (k.wrong is null or howdah.refuse(k.wrong, format('job %s: ', k.place)) is null)
        order by g.unique_key, k.place) c
  cross join lateral howdah.enqueue(c.kind, c.payload, c.queue, c.priority, c.run_at, c.delay, c.max_attempts, c.timeout, c.unique_key,
    c.conflict, c.subject, c.depends_on, c.batch, c.limits, c.fifo_key, expires_at => c.expires_at, headers => c.headers,
    on_failed_dependency => c.failed_dependency) e
  order by 1;

  perform howdah.wake_all();
  if heads @? '$[*] ? (exists(@.run_at) || exists(@.delay))' then perform howdah.notify('howdah_control', 'due'); end if;
end $$;

-- One event for the coalescing: all events of a kind and key that are committed within `delay` of the first become one
-- job with the last payload. After every committed event a run starts that began after that commit, and there is at
-- most one run per key and delay. Callers never wait for one another: this only appends.
create function howdah.enqueue_coalesced(kind text, payload jsonb default '{}', key text default '', delay interval default '0',
  queue text default null, priority int default null, subject text default null)
returns void language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  problem text[];
  fields  jsonb;
  due     timestamptz := clock_timestamp() + greatest(coalesce(delay, '0'), interval '0');
begin
  problem := howdah.argument_problem(kind, payload, queue, priority, null, delay, null, null, null, 'skip', subject, null, null, null, null, null, null);
  if problem is null and (key is null or length(key) > 500) then
    problem := array['JB002', case when key is null then 'key is null' else format('key has %s characters', length(key)) end, 'at most 500 characters'];
  end if;
  if problem is null then
    select k.fields into fields from howdah.kinds k where k.name = enqueue_coalesced.kind;
    if not found and (select s.strict_kinds from howdah.settings s) then
      problem := array['JB004', format('kind %L was never registered', kind), 'run howdah register, or start a worker that has it'];
    elsif fields <> '{}' then
      problem := array['JB003', kind || ': ' || howdah.field_problem(fields, payload, interval '10 minutes'), 'see the schema in howdah.kinds'];
    end if;
  end if;
  if problem[2] is not null then perform howdah.refuse(problem); end if;

  if not exists (select from howdah.events e where e.due_at > now() and e.due_at <= due) then
    perform howdah.notify('howdah_control', 'due');
  end if;
  insert into howdah.events (due_at, priority, kind, key, queue, subject, payload)
  values (due, enqueue_coalesced.priority, enqueue_coalesced.kind, enqueue_coalesced.key, enqueue_coalesced.queue, enqueue_coalesced.subject, enqueue_coalesced.payload);
end $$;
