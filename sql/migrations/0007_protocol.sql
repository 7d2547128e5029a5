-- The worker's side for any language: claim, start, complete (0003), fail, release, beat. The same fence and the same
-- rescue as for the daemon's own workers; promotion and rescue are done by the daemon, of which at least one has to run.
--
-- A worker names itself, and no two processes ever use one name: host, process id and something random. It claims, works, and calls
-- complete or fail for each job; it beats at least every third of its ttl. Leases have 53 bits here, so that they survive
-- JSON in languages whose numbers are doubles.

-- Who has said under this name that it works in SQL; daemons come and go under ids of their own.
create unique index workers_sql on howdah.workers (name) where version = 'sql';

-- A kind remembers the worker that had it and left last: what explain tells when nobody has it any more.
create function howdah.remember_kinds() returns trigger language plpgsql
security definer set search_path = pg_catalog, howdah, pg_temp as $$
begin
  update howdah.kinds k set last_worker = old.name, last_had_at = old.beat_at where k.name in (
    select k.name from howdah.kinds k where k.name = any (old.kinds) order by k.name for update skip locked);
  return null;
end $$;
create trigger remember_kinds after delete on howdah.workers for each row execute function howdah.remember_kinds();

-- Takes up to `count` ready jobs of these kinds, queue by queue as they are named, most urgent first in each, and makes the
-- worker's row or beats for it. No row: nothing to do; channel `howdah` then carries the name of a queue in which something came, but
-- look every second all the same. A suspect comes alone. Suspects, and jobs that may run at most once, count as started from here.
create function howdah.claim(worker text, queues text[], kinds text[], count int default 1, ttl interval default '1 minute')
returns table (id bigint, lease bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint,
  timeout float8, subject text, headers jsonb, created_at timestamptz, batch bigint)
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_column
declare
  me    bigint;
  job   record;
  name  text;
  taken int := 0;
begin
  me := howdah.sql_worker(claim.worker, claim.queues, claim.kinds, claim.ttl);
  if claim.count is null or claim.count not between 1 and 1000 then
    perform howdah.refuse(array['JB002', format('count is %s', coalesce(claim.count::text, 'null')), '1 to 1000']);
  end if;
  claim.lease := ('x' || left(md5(gen_random_uuid()::text), 13))::bit(52)::bigint + 1;
  for job in select s.* from howdah.claim_suspect(me, claim.lease, claim.kinds, claim.queues, true) s loop
    if job.max_attempts = 1 then
      update howdah.jobs j set started_at = j.claimed_at where j.id = job.id;
    end if;
    return query select job.id, claim.lease, job.queue, job.kind, job.payload, job.priority, job.attempt, job.max_attempts, job.timeout,
      job.subject, job.headers, job.created_at, job.batch;
    return;
  end loop;
  foreach name in array claim.queues loop
    for job in select r.* from howdah.claim_ready(me, claim.lease, claim.kinds, array[name], array[claim.count - taken],
                                                  array[name], array[-1], array[0::bigint], array[10]) r
               order by r.priority desc, r.id loop
      taken := taken + 1;
      if job.max_attempts = 1 then
        update howdah.jobs j set started_at = j.claimed_at where j.id = job.id;
      end if;
      return query select job.id, claim.lease, job.queue, job.kind, job.payload, job.priority, job.attempt, job.max_attempts, job.timeout,
        job.subject, job.headers, job.created_at, job.batch;
    end loop;
    exit when taken >= claim.count;
    if exists (select from howdah.openings) and current_setting('transaction_isolation') = 'read committed' then
      for job in select r.* from howdah.claim_limited(me, claim.lease, claim.kinds, array[name], array[claim.count - taken]) r
                 where r.id is not null order by r.priority desc, r.id loop
        taken := taken + 1;
        if job.max_attempts = 1 then
          update howdah.jobs j set started_at = j.claimed_at where j.id = job.id;
        end if;
        return query select job.id, claim.lease, job.queue, job.kind, job.payload, job.priority, job.attempt, job.max_attempts, job.timeout,
          job.subject, job.headers, job.created_at, job.batch;
      end loop;
      exit when taken >= claim.count;
    end if;
  end loop;
  update howdah.workers w set sleeps = taken < claim.count where w.id = me and w.sleeps <> (taken < claim.count);
end $$;

-- The row of a worker that works in SQL: made, or its beat renewed, not more often than a twelfth of the ttl.
create function howdah.sql_worker(worker text, queues text[], kinds text[], ttl interval) returns bigint language plpgsql as $$
#variable_conflict use_column
declare
  me bigint;
begin
  if worker is null or worker !~ '^[^[:cntrl:]]{1,200}$' then
    perform howdah.refuse(array['JB002', format('worker is %L', left(worker, 200)), 'a name that no other process has: host, process id, something random']);
  elsif coalesce(cardinality(queues), 0) = 0 or coalesce(cardinality(kinds), 0) = 0 then
    perform howdah.refuse(array['JB002', 'queues and kinds must each name at least one', 'claim(worker, array[''default''], array[''mail''], 10)']);
  elsif ttl is null or ttl < interval '3 seconds' or ttl > interval '1 day' then
    perform howdah.refuse(array['JB002', format('ttl is %s', ttl), '3 seconds to 1 day']);
  end if;
  select w.id into me from howdah.workers w
    where w.version = 'sql' and w.name = sql_worker.worker and w.queues = sql_worker.queues and w.kinds = sql_worker.kinds and w.ttl = sql_worker.ttl
      and w.beat_at between clock_timestamp() - w.ttl / 12 and clock_timestamp();
  if me is null then
    insert into howdah.workers as w (name, version, ttl, queues, kinds, sleeps) values (worker, 'sql', ttl, queues, kinds, true)
    on conflict (name) where version = 'sql' do update set queues = excluded.queues, kinds = excluded.kinds, ttl = excluded.ttl,
      beat_at = clock_timestamp()
    returning id into me;
  end if;
  return me;
end $$;

-- Says that a worker lives, which it must at least every third of its ttl. `alive` false: it was taken for dead, and its jobs are
-- others' now. `cancelled` names its jobs that somebody wants cancelled: stop them, then release them.
create function howdah.beat(worker text, out alive boolean, out cancelled bigint[])
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  me bigint;
begin
  update howdah.workers w set beat_at = clock_timestamp() where w.version = 'sql' and w.name = beat.worker returning w.id into me;
  alive := me is not null;
  select coalesce(array_agg(distinct s.job_id), '{}') into cancelled from howdah.signals s join howdah.jobs j on j.id = s.job_id where j.leased_by = me;
end $$;

-- Writes that work on a job has begun, and tells whether the lease still holds. Needs calling only for long jobs, so that people see it.
create function howdah.start(job_id bigint, lease bigint) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
begin
  update howdah.jobs j set started_at = coalesce(j.started_at, greatest(j.claimed_at, clock_timestamp()))
    where j.id = start.job_id and j.lease = start.lease;
  return found;
end $$;

-- Ends an attempt as failed and gives the job's state after it: retrying, after the usual backoff (2^attempt seconds, at most an
-- hour, the upper half at random) or after `retry_in`; or dead, if the attempts are used up or `hopeless`. `error` is a message, or a JSON object
-- with type, message and whatever else helps. Refused (JB008) if the lease is not the current one.
create function howdah.fail(job_id bigint, lease bigint, error text, retry_in interval default null, hopeless boolean default false)
returns text language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  job   howdah.jobs;
  told  jsonb;
  state text;
begin
  begin
    told := fail.error::jsonb;
  exception when others then
    told := null;
  end;
  if told is null or jsonb_typeof(told) <> 'object' or not told ? 'message' then
    told := jsonb_build_object('type', 'Error', 'message', coalesce(left(fail.error, 10000), 'no reason was given'));
  elsif octet_length(told::text) > 20000 then
    told := jsonb_build_object('type', coalesce(told ->> 'type', 'Error'), 'message', left(told ->> 'message', 10000));
  end if;
  select j.* into job from howdah.jobs j where j.id = fail.job_id and j.lease = fail.lease for update;
  if found then
    return howdah.give_back(job, case when hopeless then 'dead' else 'retried' end, told,
      coalesce(extract(epoch from retry_in)::float8, least(2.0 ^ least(job.attempt, 12), 3600) * (0.5 + random() / 2)));
  end if;
  return howdah.given_back(fail.job_id, fail.lease);
end $$;

-- Gives a claimed job back unharmed, its attempt not counted, and gives its state after that: ready, or cancelled if somebody asked for it;
-- dead if it may run at most once. Refused (JB008) if the lease is not the current one.
create function howdah.release(job_id bigint, lease bigint) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  job howdah.jobs;
begin
  select j.* into job from howdah.jobs j where j.id = release.job_id and j.lease = release.lease for update;
  if found then
    return howdah.give_back(job, case when job.max_attempts = 1 and job.started_at is not null then 'dead' else 'released' end,
      case when job.max_attempts = 1 and job.started_at is not null then '{"type": "Interrupted", "message": "its worker gave it back, and it may run at most once"}'::jsonb end, null);
  end if;
  return howdah.given_back(release.job_id, release.lease);
end $$;

-- Acks a job whose row the caller has locked, and gives its state.
create function howdah.give_back(job howdah.jobs, outcome text, error jsonb, delay float8) returns text language plpgsql as $$
declare
  age   float8 := extract(epoch from clock_timestamp() - case when outcome = 'released' then job.started_at else coalesce(job.started_at, job.claimed_at) end);
  state text;
begin
  perform howdah.ack(array[job.id], array[job.lease], array[outcome], array[null::jsonb], array[error], array[delay],
    array[age], array[age], array[null::jsonb], coalesce(current_setting('howdah.keep_history', true), 'on') <> 'off');
  select s.state into state from howdah.job_status s where s.id = job.id;
  if state = 'ready' then perform howdah.wake(job.queue); end if;
  if state in ('retrying', 'scheduled') then perform howdah.notify('howdah_control', 'due'); end if;
  return coalesce(state, 'dead');
end $$;

-- The state of a job whose lease was given back already, for a repeat after a lost reply; refused for a lost lease.
create function howdah.given_back(job_id bigint, lease bigint) returns text language plpgsql as $$
declare
  state text;
begin
  select s.state into state from howdah.job_status s where s.id = given_back.job_id
    and (exists (select from howdah.jobs j where j.id = given_back.job_id and j.last_lease = given_back.lease)
      or exists (select from howdah.job_history h where h.id = given_back.job_id and h.lease = given_back.lease));
  if state is null then
    perform howdah.refuse(array['JB008', format('job %s is not held under lease %s any more', job_id, lease), 'stop working on it: somebody else has it, or it has ended']);
  end if;
  return state;
end $$;
