-- The whole schema of Howdah at a glance: read this first. Nothing applies this file; sql/migrations does, and a test holds
-- that both give the same database.
--
-- A job in one paragraph. A caller puts a row into howdah.jobs with howdah.enqueue, in its own transaction. A worker takes it
-- with howdah.claim_ready: the row gets a lease, a random number without which nobody can write about the job any more. What
-- comes of the attempt is written by howdah.ack: an ended job moves, in one statement, to the day's partition of
-- howdah.job_history; one that is to run again goes back, due at once or later. howdah.promote makes due jobs claimable,
-- howdah.coalesce_events makes one job of many events, howdah.rescue takes the jobs of dead workers back. Everybody
-- reads the view howdah.job_status, and none but the engine touches the tables.
--
-- What to know before changing anything:
--   * A claim is a heap-only update. No index may name what it writes, and the table needs its fillfactor.
--   * Nobody but the engine locks a running row; the engine itself never waits for a row (`skip locked`).
--   * Plans are pinned where the planner's guess could read a whole table; see the comment of each such function.
--   * Only the database's clock decides, and it may step back: times are made monotone where they are written.
--   * Refusals have SQLSTATEs of class JB, name the field and carry a hint.
--
-- The parts: 1 tables and the view · 2 how work comes in · 3 a job's way through a worker · 4 kinds, and what everybody may
-- ask · 5 who waits for the end of jobs · 6 what people may do to jobs and queues · 7 the protocol for workers in other
-- languages · 8 why a job is not running. Below the line stand the files of sql/migrations, one after the other:
--   cd sql && { sed '/^-- =====/q' schema.sql; for file in migrations/*.sql; do echo; cat "$file"; done; } > s && mv s schema.sql

-- ====================================================================================================================

-- The engine's tables. A live job is one row of howdah.jobs, an ended one is one row of howdah.job_history, and the
-- move between them is one statement. Everybody reads the view howdah.job_status; the tables are the engine's own.

create schema howdah;

-- What has been applied: the engine's own migrations and the application's, each numbered from 1.
create table howdah.migrations (
  source     text        not null,                     -- howdah or app
  version    int         not null,
  name       text        not null,
  checksum   text        not null,                     -- SHA-256 of the file: an applied migration never changes
  applied_at timestamptz not null default clock_timestamp(),
  primary key (source, version)
);

-- What holds for the whole database: one row.
create table howdah.settings (
  singleton          boolean primary key default true check (singleton),
  strict_kinds       boolean not null default false,     -- true: a kind that was never registered is refused
  min_worker_version text    not null default '0.1.0',   -- a worker older than this refuses to run, exit 78
  limited            boolean not null default false,     -- some kind or queue has a limit, see 0012
  advisory_locks     boolean not null default true,      -- false: the server has none, so rows of howdah.locks are locked instead
  notifications      boolean not null default true       -- false: the server has none, so nobody is told; workers find all by polling
);
insert into howdah.settings default values;

-- Rows to be locked where the server has no advisory locks. Nothing is ever written here.
create table howdah.locks (
  slot int primary key
);
insert into howdah.locks select generate_series(0, 4095);

-- Which of the things that PostgreSQL's kin often lack do not work here, for this login: tried, for some have the names and nothing behind them.
create function howdah.lacks() returns text[] language plpgsql as $$
declare
  missing text[] := '{}';
begin
  begin
    if not pg_try_advisory_xact_lock(7316042, pg_backend_pid())
       or not exists (select from pg_locks l where l.locktype = 'advisory' and l.classid = 7316042 and l.objid = pg_backend_pid()) then
      missing := missing || 'advisory_locks'::text;
    end if;
  exception when undefined_function or undefined_table or feature_not_supported or insufficient_privilege then
    missing := missing || 'advisory_locks'::text;
  end;
  begin
    -- Not into a queue that may be full: the commit would fail.
    if pg_notification_queue_usage() < 0.5 then perform pg_notify('howdah_control', 'echo nobody'); end if;
  exception when read_only_sql_transaction then null;   -- a standby
  when undefined_function or feature_not_supported or insufficient_privilege then
    missing := missing || 'notifications'::text;
  end;
  return missing;
end $$;

-- Tries a lock that holds to the end of the transaction, and tells whether it is ours. A statement of its own, so that the next one sees what the
-- holder before has committed. Rows instead of advisory locks: two keys may share a row, which looks like somebody else at work.
create function howdah.try_lock(class int, key int) returns boolean language plpgsql as $$
begin
  if (select s.advisory_locks from howdah.settings s) then return pg_try_advisory_xact_lock(class, key); end if;
  perform from howdah.locks l where l.slot = case class when 7316042 then key else 8 + (key & 2147483647) % 4088 end for update skip locked;
  return found;
end $$;

-- Takes such a lock, waiting no longer than lock_timeout.
create function howdah.take_lock(class int, key int) returns void language plpgsql as $$
begin
  if (select s.advisory_locks from howdah.settings s) then
    perform pg_advisory_xact_lock(class, key);
  else
    perform from howdah.locks l where l.slot = key for update;
  end if;
end $$;

-- Tells whoever listens, where the server can, and unless its queue of notifications is more than half full, because somebody listens and sits
-- in an open transaction. With a full one the commit fails, where nobody can catch it, and that would be our caller's commit. Everything works
-- without being told, only later.
create function howdah.notify(channel text, word text) returns void language plpgsql as $$
begin
  if (select s.notifications from howdah.settings s) then     -- apart: where the server has none, it has no queue either
    if pg_notification_queue_usage() < 0.5 then perform pg_notify(channel, word); end if;
  end if;
end $$;

-- The live jobs.
-- No index may ever name lease, leased_by, claimed_at, started_at, attempt, state or progress: claims are heap-only
-- updates, which needs both that and the free half of every page (fillfactor 45). Without either, each claim writes
-- every index, and the claim index gets two entries in a job's life instead of one.
create table howdah.jobs (
  id            bigint generated always as identity primary key,
  created_at    timestamptz not null default clock_timestamp(),
  ready_at      timestamptz not null default clock_timestamp(),  -- since when it could be claimed; what the wait is counted from
  due_at        timestamptz,         -- null: claimable now; a time: not before; infinity: waits for something else
  expires_at    timestamptz,         -- not started by then: cancelled
  claimed_at    timestamptz,
  started_at    timestamptz,         -- written at once for suspects and at-most-once kinds, else when it has run a second
  progressed_at timestamptz,
  lease         bigint,              -- null unless claimed; new for every claim; every write of a worker is fenced by it
  leased_by     bigint,              -- the worker's id
  last_lease    bigint,              -- the lease that was given back last: tells a repeated ack from a lost lease
  batch         bigint,              -- the job behind the group that this one belongs to
  retried_from  bigint,
  timeout       interval,            -- null: the handler's own
  priority      smallint not null default 0,
  attempt       smallint not null default 0,
  max_attempts  smallint not null default 3,
  crashes       smallint not null default 0,
  suspect       boolean  not null default false,
  queue         text     not null default 'default',
  kind          text     not null,
  state         text     not null generated always as (
    case when lease is not null                      then 'running'
         when due_at is null and gate is not null    then 'waiting'
         when due_at is null                         then 'ready'
         when due_at = 'infinity'::timestamptz       then 'waiting'
         when attempt > 0                            then 'retrying'
         else 'scheduled' end) stored,
  payload       jsonb    not null default '{}',
  progress      jsonb,
  errors        jsonb,               -- the last ten, oldest first
  headers       jsonb,
  unique_key    text,
  subject       text,
  fifo_key      text,
  depends_on    bigint[],
  limits        text[],              -- the keys of which it needs a place, see 0012
  gate          text,                -- the one in whose line it stands while nobody has claimed it; null: it has no keys
  constraint payload_is_object check (jsonb_typeof(payload) = 'object'),
  constraint priority_in_range check (priority between 0 and 10),
  constraint attempts_in_range check (attempt between 0 and max_attempts),
  constraint lease_is_whole    check ((lease is null) = (leased_by is null) and (lease is null) = (claimed_at is null)),
  constraint claimed_in_order  check (claimed_at >= created_at),
  constraint started_in_order  check (started_at >= claimed_at)
) with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0,
        autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_analyze_scale_factor = 0.05, vacuum_truncate = off);

-- The claim walks this in order; one entry in a job's life.
create index jobs_claim on howdah.jobs (queue, (10 - priority), id) where due_at is null and not suspect and gate is null;
-- Suspects stand apart, so that a claim never passes over them. Empty on a good day.
create index jobs_suspect on howdah.jobs (queue, (10 - priority), id) where due_at is null and suspect;
-- The lines of those that have keys, each as the claim walks it; and the FIFO lines in order, whatever their jobs wait for.
create index jobs_gate on howdah.jobs (gate, queue, (10 - priority), id) where due_at is null and not suspect and gate is not null;
create index jobs_fifo on howdah.jobs (fifo_key, id) where due_at is null and fifo_key is not null;
create index jobs_due on howdah.jobs (due_at) where due_at is not null;
create unique index jobs_unique_key on howdah.jobs (unique_key) where unique_key is not null;
create index jobs_subject on howdah.jobs (subject) where subject is not null;
create index jobs_batch on howdah.jobs (batch) where batch is not null;
create index jobs_retried_from on howdah.jobs (retried_from) where retried_from is not null;

-- The ended jobs, a partition a day (UTC), never updated, pruned by dropping partitions. There is no default partition:
-- it would make every attach and detach lock all of history. An ack that meets a missing day makes it and repeats.
create table howdah.job_history (
  id            bigint      not null,
  created_at    timestamptz not null,
  ready_at      timestamptz not null,
  claimed_at    timestamptz,
  started_at    timestamptz,
  finished_at   timestamptz not null,
  lease         bigint,              -- the last one: an ack whose reply was lost finds it here; null: its worker died
  leased_by     bigint,
  batch         bigint,
  retried_from  bigint,
  timeout       interval,
  priority      smallint    not null,
  attempt       smallint    not null,
  max_attempts  smallint    not null,
  crashes       smallint    not null,
  queue         text        not null,
  kind          text        not null,
  state         text        not null,
  payload       jsonb       not null,
  progress      jsonb,
  result        jsonb,
  errors        jsonb,
  headers       jsonb,
  unique_key    text,
  subject       text,
  fifo_key      text,
  limits        text[],
  cancelled_by  text,
  cancel_reason text,
  constraint state_is_final     check (state in ('completed', 'dead', 'cancelled')),
  constraint claimed_in_order   check (claimed_at >= created_at),
  constraint started_in_order   check (started_at >= claimed_at),
  constraint finished_in_order  check (finished_at >= coalesce(started_at, claimed_at, created_at))
) partition by range (finished_at);

-- What can be compressed came compressed from howdah.jobs; what cannot was tried there, and would be tried again by every ack.
alter table howdah.job_history alter column payload set storage external;

create index job_history_id on howdah.job_history (id);
-- Few rows: what failed is asked for at night, what went well is not.
create index job_history_dead on howdah.job_history (finished_at) where state = 'dead';
create index job_history_subject on howdah.job_history (subject) where subject is not null;
create index job_history_retried_from on howdah.job_history (retried_from) where retried_from is not null;

-- One row per running daemon process. A beat older than ttl means dead, and others take its jobs back.
create table howdah.workers (
  id         bigint generated always as identity primary key,
  name       text        not null,                     -- host:pid, for people
  version    text        not null,
  started_at timestamptz not null default clock_timestamp(),
  beat_at    timestamptz not null default clock_timestamp(),
  ttl        interval    not null,
  queues     text[]      not null,
  kinds      text[]      not null,
  sleeps     boolean     not null default false,       -- wants to be woken by NOTIFY
  draining   boolean     not null default false
) with (fillfactor = 50);

-- Who does the upkeep that one worker can do for all: one row. It saves work; nothing depends on there being only one.
create table howdah.leader (
  singleton boolean primary key default true check (singleton),
  worker    bigint,
  until     timestamptz not null default '-infinity'
);
insert into howdah.leader default values;

-- What is known of queues beyond their name. A queue needs no row to work.
create table howdah.queues (
  name      text primary key,
  paused_at timestamptz,
  paused_by text
);

-- The kinds that workers have registered: what a payload must hold, and what null means in enqueue.
create table howdah.kinds (
  name          text primary key,
  fields        jsonb       not null default '{}',      -- field → {"types": […], "required": bool, "since": time}
  schema        jsonb,                                  -- the whole JSON schema, for people and other languages
  queue         text,
  priority      smallint check (priority between 0 and 10),
  max_attempts  smallint check (max_attempts >= 1),
  timeout       interval,
  secret        text[]      not null default '{}',
  limited       boolean     not null default false,     -- jobs of it may have limits that they do not name
  last_worker   text,                                   -- the worker that had it and left last
  last_had_at   timestamptz,
  revision      bigint      not null default 0,         -- of the handlers' code; an older one never overwrites a newer
  registered_at timestamptz not null default clock_timestamp()
);

-- Words for running jobs. Nobody but the engine locks a running row, so a cancel request waits here.
create table howdah.signals (
  id         bigint generated always as identity primary key,
  job_id     bigint      not null,
  signal     text        not null check (signal in ('cancel')),
  by         text,
  reason     text,
  created_at timestamptz not null default clock_timestamp()
);
create index signals_job on howdah.signals (job_id);

-- Who wants to hear of the end of a job.
create table howdah.waiters (
  job_id     bigint      not null,
  waiter     text        not null,
  until      timestamptz not null,
  primary key (job_id, waiter)
);

-- What jobs in state waiting wait for: a row for each job that has not ended, or that has failed while its dependent could
-- not be told. Touched with `skip locked` only, since users' transactions may cancel what waits.
create table howdah.dependencies (
  job_id     bigint  not null,                           -- the one that waits
  depends_on bigint  not null,
  required   boolean not null,                           -- true: cancelled, too, if the other one dies or is cancelled
  outcome    text,                                       -- how it ended, if that is known and could not be acted on at once
  primary key (job_id, depends_on)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
create index dependencies_on on howdah.dependencies (depends_on);
create index dependencies_known on howdah.dependencies (job_id) where outcome is not null;     -- what howdah.settle has to act on

-- The open batches: groups of jobs with one job behind them, which waits until all have ended. A batch is named by the id
-- of that job. The row goes when that job is let loose.
create table howdah.batches (
  id bigint primary key
);

-- How members of open batches ended: appended to by every ack that ends some, so that acks never wait for one another,
-- and added up when the batch is over.
create table howdah.batch_ends (
  batch     bigint not null,
  completed int    not null,
  dead      int    not null,
  cancelled int    not null
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
create index batch_ends_batch on howdah.batch_ends (batch);

-- What steps of jobs gave: kept across attempts, pruned with history.
create table howdah.steps (
  job_id     bigint      not null,
  name       text        not null check (length(name) between 1 and 200),
  result     jsonb       not null,
  created_at timestamptz not null default clock_timestamp(),
  primary key (job_id, name)
);

-- The coalescing table: events, many to a key, of which maintenance makes one job. Only ever appended to by callers, so
-- that no caller waits for another, whatever each of them holds open.
create table howdah.events (
  id         bigint generated always as identity primary key,
  due_at     timestamptz not null,
  priority   smallint check (priority between 0 and 10),
  kind       text        not null,
  key        text        not null,
  queue      text,
  subject    text,
  payload    jsonb       not null check (jsonb_typeof(payload) = 'object')
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
create index events_due on howdah.events (due_at);
create index events_key on howdah.events (kind, key);

-- What holds for a key: a name, or all names that begin as a pattern does (`chat:*`). The name itself comes before patterns, the
-- longest pattern before shorter ones. `queue:<name>` and `kind:<name>` hold for all jobs of a queue or a kind.
create table howdah.limits (
  name        text primary key check (length(name) between 1 and 200 and name !~ '[[:cntrl:]]' and strpos(left(name, -1), '*') = 0),
  concurrency int check (concurrency >= 0),                  -- how many may run at once; null: any number
  rate        float8 check (rate > 0 and rate < 'infinity'), -- how many may start in a second; null: any number
  burst       int check (burst >= 1),                        -- how many of them at one moment
  standing    boolean not null generated always as (name ~ '^(kind|queue):') stored,    -- holds without being named by jobs
  set_at      timestamptz not null default clock_timestamp()
);
create index limits_patterns on howdah.limits (name) where right(name, 1) = '*';

-- Which jobs hold which keys.
create table howdah.holds (
  key    text    not null,
  job_id bigint  not null,
  stays  boolean not null default false,                     -- until the job ends; else until its lease does
  primary key (key, job_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
create index holds_job on howdah.holds (job_id);

-- The tokens of keys that have a rate. Written under the key's lock alone, as the time at which the bucket is full again.
create table howdah.buckets (
  key     text primary key,
  full_at timestamptz not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- Where to look for jobs that may start, and not before when. Appended by anybody, taken away under the key's lock.
create table howdah.openings (
  id      bigint generated always as identity primary key,
  key     text        not null,
  queue   text        not null default '',                   -- '': any, whatever stands there
  open_at timestamptz not null default clock_timestamp(),
  tokens  int         not null default 0                     -- that were not used after all
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0, vacuum_truncate = off);
create index openings_next on howdah.openings (queue, open_at);
create index openings_key on howdah.openings (key);

-- What holds for a key, or a row of nulls.
create function howdah.limit_for(key text) returns howdah.limits language sql stable as $$
select l.* from (
  (select l.* from howdah.limits l where l.name = limit_for.key)
  union all
  (select l.* from howdah.limits l where right(l.name, 1) = '*' and starts_with(limit_for.key, left(l.name, -1))
     and l.standing = (limit_for.key ~ '^(kind|queue):') order by length(l.name) desc limit 1)) l
limit 1 $$;

-- A payload without what its kind declares secret. security definer: whoever asks need not read howdah.kinds.
create function howdah.masked(kind text, payload jsonb) returns jsonb
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp as $$
select masked.payload || coalesce((
  select jsonb_object_agg(s.field, '***') from howdah.kinds k cross join lateral unnest(k.secret) s(field)
  where k.name = masked.kind and masked.payload ? s.field), '{}') $$;

-- The reading interface over both halves of a job's life. Who may not read howdah.jobs sees payloads masked; a query that
-- does not name payload pays nothing for that. Nothing volatile: that would keep a listing from its indexes.
create view howdah.job_status as
select j.id, j.queue, j.kind, j.state, j.subject, j.priority,
       case when (select has_table_privilege('howdah.jobs', 'select')) then j.payload else howdah.masked(j.kind, j.payload) end as payload,
       j.attempt, j.max_attempts, j.crashes,
       j.created_at, j.due_at, j.claimed_at, j.started_at, null::timestamptz as finished_at,
       greatest(j.created_at, j.claimed_at, j.started_at, j.progressed_at, (j.errors -> -1 ->> 'at')::timestamptz) as updated_at,
       case when j.lease is not null then statement_timestamp() - j.started_at end as duration,
       j.progress, null::jsonb as result, j.errors -> -1 ->> 'message' as error, j.errors, j.leased_by as worker,
       null::text as cancelled_by, null::text as cancel_reason, j.retried_from, j.unique_key, j.headers
from howdah.jobs j
union all
select h.id, h.queue, h.kind, h.state, h.subject, h.priority,
       case when (select has_table_privilege('howdah.jobs', 'select')) then h.payload else howdah.masked(h.kind, h.payload) end,
       h.attempt, h.max_attempts, h.crashes,
       h.created_at, null, h.claimed_at, h.started_at, h.finished_at,
       h.finished_at, h.finished_at - h.started_at,
       h.progress, h.result, h.errors -> -1 ->> 'message', h.errors, h.leased_by,
       h.cancelled_by, h.cancel_reason, h.retried_from, h.unique_key, h.headers
from howdah.job_history h;

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

-- A job's way through a worker: claim, start, ack; and what makes jobs ready: promote, coalesce, rescue.

-- Takes ready jobs for one worker under one new lease: of each queue at most its room, the most urgent first, oldest
-- first within a priority. Where it looks is said by the lines: line i walks queue line_queues[i] from just behind
-- (line_ranks[i], line_pasts[i]) to the end of rank line_uptos[i], or in it up to id line_ends[i], a rank being 10 - priority. A look from the
-- start is the one line (-1, 0, 10).
--
-- The plan is pinned, whatever the statistics say: index order is claim order, and with a sort, a bitmap or another index
-- a claim reads the whole queue (717 ms for 100 rows at a million). It is made once: making it anew takes half a millisecond, as long as
-- fifty jobs. `materialized` keeps the limit beneath the lock.
-- Claims touch no indexed column, see howdah.jobs.
create function howdah.claim_ready(worker bigint, lease bigint, kinds text[], queues text[], rooms int[],
  line_queues text[], line_ranks int[], line_pasts bigint[], line_uptos int[], line_ends bigint[] default null)
returns table (id bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint, timeout float8,
  waited float8, expires_in float8, subject text, headers jsonb, created_at timestamptz, crashes smallint, batch bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  moment timestamptz := clock_timestamp();
  limited_kinds  text[];
  limited_queues text[];
begin
  -- What a kind or a queue has limits for is claimed by howdah.claim_limited alone, also if that was not known when a job came.
  if exists (select from howdah.limits l where l.standing) then
    select * into limited_kinds, limited_queues from howdah.standing_among(claim_ready.kinds, claim_ready.queues);
    if limited_kinds <> '{}' or limited_queues <> '{}' then
      if -1 = any (claim_ready.line_ranks) then     -- a look, which comes by all of them
        perform howdah.send_to_gates(claim_ready.queues, limited_queues, limited_kinds);
      end if;
      claim_ready.kinds := array(select k.name from unnest(claim_ready.kinds) k(name) where k.name <> all (limited_kinds));
      claim_ready.rooms := array(select case when w.queue = any (limited_queues) then 0 else w.room end
        from unnest(claim_ready.queues, claim_ready.rooms) with ordinality w(queue, room, place) order by w.place);
    end if;
  end if;
  return query
  with wanted as (
    select * from unnest(claim_ready.queues, claim_ready.rooms) as w(queue, room)),
  line as (
    select l.queue, l.rank, l.past, l.upto, coalesce(l.ends, 9223372036854775807) as ends
    from unnest(claim_ready.line_queues, claim_ready.line_ranks, claim_ready.line_pasts, claim_ready.line_uptos, claim_ready.line_ends)
      as l(queue, rank, past, upto, ends)),
  picked as materialized (
    select next.at
    from wanted cross join lateral (
      select one.at
      from line cross join lateral (
        select j.ctid as at
        from howdah.jobs j
        where j.queue = line.queue and j.due_at is null and not j.suspect and j.gate is null
          and ((10 - j.priority), j.id) > (line.rank, line.past) and ((10 - j.priority), j.id) <= (line.upto, line.ends)
          and j.lease is null and j.kind = any (claim_ready.kinds)
        order by (10 - j.priority), j.id
        limit wanted.room
        for update skip locked) one
      where line.queue = wanted.queue
      limit wanted.room) next
    where not exists (select from howdah.queues q where q.name = wanted.queue and q.paused_at is not null))
  update howdah.jobs j
  set lease = claim_ready.lease, leased_by = claim_ready.worker, attempt = j.attempt + 1, claimed_at = greatest(moment, j.created_at)
  from picked where j.ctid = picked.at
  returning j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, date_part('epoch', j.timeout),
    greatest(date_part('epoch', moment - j.ready_at), 0), date_part('epoch', j.expires_at - moment),
    j.subject, j.headers, j.created_at, j.crashes, j.batch;
end $$;

-- Finds ready jobs that lie behind: line i walks queue line_queues[i] within rank line_ranks[i] up to id line_pasts[i]; the lines of a queue are one
-- after the other. Of each queue at most `most`, in claim order. It takes nothing, so it may last: what it finds is claimed by lines of its own.
-- The plan is pinned like that of a claim.
create function howdah.find_behind(kinds text[], queues text[], most int, line_queues text[], line_ranks int[], line_pasts bigint[])
returns table (queue text, rank int, id bigint)
language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  limited_kinds  text[];
  limited_queues text[];
begin
  if exists (select from howdah.limits l where l.standing) then
    select * into limited_kinds, limited_queues from howdah.standing_among(find_behind.kinds, find_behind.queues);
    if limited_kinds <> '{}' or limited_queues <> '{}' then
      perform howdah.send_to_gates(find_behind.queues, limited_queues, limited_kinds);
    end if;
  end if;
  return query
  with line as (
    select * from unnest(find_behind.line_queues, find_behind.line_ranks, find_behind.line_pasts) as l(queue, rank, past))
  select wanted.name, next.rank, next.id
  from unnest(find_behind.queues) wanted(name) cross join lateral (
    select line.rank, one.id
    from line cross join lateral (
      select j.id
      from howdah.jobs j
      where j.queue = line.queue and j.due_at is null and not j.suspect and j.gate is null and (10 - j.priority) = line.rank and j.id <= line.past
        and j.lease is null and j.kind = any (find_behind.kinds)
      order by j.id
      limit find_behind.most) one
    where line.queue = wanted.name
    limit find_behind.most) next
  where not exists (select from howdah.queues q where q.name = wanted.name and q.paused_at is not null);
end $$;

-- Takes one suspect. With `begun` its start is written, too: in the same commit, by a worker that has kept a slot free for it and calls its handler
-- at once; else, and for a job that may run at most once, by a statement of its own right before that. A suspect that only waited when its worker died has brought down nobody.
-- `before_id` is the suspect before it, held under `before_lease`, which has run: its start is taken back, since from now on it brings down nobody, and what
-- came of it need not be written yet. If somebody holds that row this moment, or the job may run at most once, nothing is taken: ask again without
-- it when its end is written.
create function howdah.claim_suspect(worker bigint, lease bigint, kinds text[], queues text[], begun boolean default false,
  before_id bigint default null, before_lease bigint default null)
returns table (id bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint, timeout float8,
  waited float8, expires_in float8, subject text, headers jsonb, created_at timestamptz, crashes smallint, batch bigint)
language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  moment timestamptz := clock_timestamp();
  one    record;
begin
  if before_id is not null then
    update howdah.jobs j set started_at = null from (
      select k.id from howdah.jobs k where k.id = before_id and k.lease = before_lease and k.max_attempts > 1 for update skip locked) was
    where j.id = was.id;
    if not found and exists (select from howdah.jobs k where k.id = before_id and k.lease = before_lease) then return; end if;
  end if;
  if exists (select from howdah.limits l where l.standing) then
    update howdah.jobs j set limits = k.keys, gate = (howdah.keys_of(k.keys, j.fifo_key))[1]
    from (select s.id, howdah.with_standing(s.limits, s.kind, s.queue) as keys from howdah.jobs s
          where s.due_at is null and s.suspect and s.gate is null and s.lease is null order by s.id for update skip locked) k
    where j.id = k.id and k.keys is not null;
  end if;
  claim_suspect.queues := array(select n.queue from unnest(claim_suspect.queues) n(queue)
    where not exists (select from howdah.queues q where q.name = n.queue and q.paused_at is not null));
  return query
  with picked as materialized (
    select j.ctid as at
    from howdah.jobs j
    where j.queue = any (claim_suspect.queues) and j.due_at is null and j.suspect and j.gate is null and j.lease is null and j.kind = any (claim_suspect.kinds)
    order by (10 - j.priority), j.id
    limit 1
    for update skip locked)
  update howdah.jobs j
  set lease = claim_suspect.lease, leased_by = claim_suspect.worker, attempt = j.attempt + 1, claimed_at = greatest(moment, j.created_at),
    started_at = case when begun and j.max_attempts > 1 then greatest(moment, j.created_at) end
  from picked where j.ctid = picked.at
  returning j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, extract(epoch from j.timeout)::float8,
    greatest(extract(epoch from moment - j.ready_at), 0)::float8, extract(epoch from j.expires_at - moment)::float8,
    j.subject, j.headers, j.created_at, j.crashes, j.batch;
  if found then return; end if;
  -- Those that have keys take them first, or are passed over.
  for one in
    select j.id, j.limits, j.fifo_key from howdah.jobs j
    where j.queue = any (claim_suspect.queues) and j.due_at is null and j.suspect and j.gate is not null and j.lease is null and j.kind = any (claim_suspect.kinds)
      and current_setting('transaction_isolation') = 'read committed'
    order by (10 - j.priority), j.id
    for update skip locked loop
    continue when (howdah.acquire(one.id, howdah.keys_of(one.limits, one.fifo_key))).blocked is not null;
    return query
    update howdah.jobs j
    set lease = claim_suspect.lease, leased_by = claim_suspect.worker, attempt = j.attempt + 1, claimed_at = greatest(moment, j.created_at), gate = null,
      started_at = case when begun and j.max_attempts > 1 then greatest(moment, j.created_at) end
    where j.id = one.id
    returning j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, extract(epoch from j.timeout)::float8,
      greatest(extract(epoch from moment - j.ready_at), 0)::float8, extract(epoch from j.expires_at - moment)::float8,
      j.subject, j.headers, j.created_at, j.crashes, j.batch;
    return;
  end loop;
end $$;

-- The list of errors with one more: the last ten, each knowing its attempt and time.
create function howdah.with_error(errors jsonb, error jsonb, attempt smallint, at timestamptz) returns jsonb language sql immutable parallel safe as $$
select case when error is null then errors
  else (case when jsonb_array_length(errors) >= 10 then errors - 0 else coalesce(errors, '[]') end)
    || jsonb_build_array(error || jsonb_build_object('attempt', attempt, 'at', at)) end $$;

-- A payload without what its kind declares secret: what history keeps of jobs that nobody has to run again.
create function howdah.without_secrets(kind text, payload jsonb) returns jsonb language sql stable as $$
select coalesce((select without_secrets.payload - k.secret from howdah.kinds k where k.name = without_secrets.kind), without_secrets.payload) $$;

-- Writes what came of attempts, all fenced by (id, lease), and returns the ids that it wrote. The others are busy
-- (somebody holds the row this moment), repeated or lost: howdah.ack_fate tells. It never waits: an ack that waits for a
-- row that a user's open transaction holds would hold up all the others.
--   completed, dead, cancelled   end the job; errors[i] is the error, for cancelled {"by", "reason"}
--   retried, snoozed             send it back after delays[i] seconds; a snoozed attempt is not counted
--   released                     gives it back unharmed: attempt not counted, still a suspect if it was one
--   rescued, crashed             the same after its worker died: as a suspect; or dead, one crash more
-- ages[i] is how many seconds ago the handler started, runs[i] how long it ran; null: it never started. progresses[i], if any, is the
-- last one. With keep false no history is kept. Payload fields that are declared secret go when the job completes or is cancelled; a dead
-- one keeps them, so that it can be retried.
create function howdah.ack(ids bigint[], leases bigint[], outcomes text[], results jsonb[], errors jsonb[], delays float8[], ages float8[], runs float8[],
  progresses jsonb[], keep boolean)
returns setof bigint language plpgsql
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  moment  timestamptz := clock_timestamp();
  secrets boolean := exists (select from howdah.kinds k where k.secret <> '{}');
  written bigint[];
  ended   bigint[];
  states  text[];
  batches bigint[];
  unused  bigint[];
begin
  with done as materialized (
    select * from unnest(ack.ids, ack.leases, ack.outcomes, ack.results, ack.errors, ack.delays, ack.ages, ack.runs, ack.progresses)
      as d(id, lease, outcome, result, error, delay, age, run, progress) order by d.id),
  held as materialized (
    select locked.at, locked.begun, d.id, d.lease, d.result, d.delay, d.age, d.run, d.progress, coalesce(stop.error, d.error) as error,
      -- One attempt too many would break every claim that meets the job.
      coalesce(stop.outcome, case when d.outcome = 'retried' and locked.spent then 'dead' else d.outcome end) as outcome
    from done d cross join lateral (
      select j.ctid as at, j.attempt >= j.max_attempts as spent, j.started_at is not null as begun from howdah.jobs j where j.id = d.id and j.lease = d.lease for update skip locked) locked
    left join lateral (               -- a job that would come back, and that somebody wants cancelled, does not come back
      select 'cancelled' as outcome, jsonb_build_object('by', s.by, 'reason', s.reason) as error
      from howdah.signals s where s.job_id = d.id and d.outcome in ('retried', 'snoozed', 'released', 'rescued') order by s.id limit 1) stop on true),
  gone as (
    delete from howdah.jobs j using held d where j.ctid = d.at and d.outcome in ('completed', 'dead', 'cancelled', 'crashed')
    returning j.*, d.outcome, d.result, d.error, d.progress as last_progress, d.run,
      least(moment, greatest(j.claimed_at, coalesce(j.started_at, moment - d.age * interval '1 second'))) as began, d.age is null and j.started_at is null as unstarted),
  kept as (
    insert into howdah.job_history (id, queue, kind, payload, priority, attempt, max_attempts, crashes, lease, leased_by, state, result, errors, progress,
      cancelled_by, cancel_reason, unique_key, subject, headers, batch, fifo_key, limits, retried_from, timeout, created_at, ready_at, claimed_at, started_at, finished_at)
    select g.id, g.queue, g.kind,
      case when secrets and g.outcome in ('completed', 'cancelled') then howdah.without_secrets(g.kind, g.payload) else g.payload end,
      g.priority, g.attempt, g.max_attempts, g.crashes + (g.outcome = 'crashed')::int,
      case when g.outcome <> 'crashed' then g.lease end, g.leased_by,
      case g.outcome when 'crashed' then 'dead' else g.outcome end, g.result,
      -- Called for failures alone: a function that cannot be inlined costs more than the rest of the row.
      case when g.error is null or g.outcome = 'cancelled' then g.errors else howdah.with_error(g.errors, g.error, g.attempt, moment) end,
      coalesce(g.last_progress, g.progress),
      case when g.outcome = 'cancelled' then g.error ->> 'by' end, case when g.outcome = 'cancelled' then g.error ->> 'reason' end,
      g.unique_key, g.subject, g.headers, g.batch, g.fifo_key, g.limits, g.retried_from, g.timeout,
      -- Nothing later than this moment: what was written before the clock was set back would want a day that history does not have.
      least(g.created_at, moment), g.ready_at, least(g.claimed_at, moment),
      case when not g.unstarted then g.began end, greatest(g.began, least(g.claimed_at, moment), least(moment, g.began + g.run * interval '1 second'))
    from gone g where ack.keep),
  back as (
    update howdah.jobs j
    set lease = null, leased_by = null, claimed_at = null, started_at = null,
      last_lease = case d.outcome when 'rescued' then j.last_lease else d.lease end,  -- its own worker has lost it, whatever it acks later
      attempt = case d.outcome when 'retried' then j.attempt else j.attempt - 1 end,
      due_at = case when d.outcome in ('retried', 'snoozed') and d.delay > 0 then moment + d.delay * interval '1 second' end,
      ready_at = case when d.outcome in ('retried', 'snoozed') then moment + greatest(d.delay, 0) * interval '1 second' else j.ready_at end,
      suspect = d.outcome = 'rescued' or (d.outcome = 'released' and j.suspect),
      crashes = j.crashes + (d.outcome = 'rescued' and j.suspect and j.started_at is not null)::int,
      errors = howdah.with_error(j.errors, d.error, j.attempt, moment), progress = coalesce(d.progress, j.progress),
      gate = case when j.limits is not null or j.fifo_key is not null then (howdah.keys_of(j.limits, j.fifo_key))[1] end
    from held d where j.ctid = d.at and d.outcome in ('retried', 'snoozed', 'released', 'rescued')
    returning j.id, j.limits is not null and d.outcome = 'released' and d.age is null and not d.begun as unused)
  select array_agg(e.id), array_agg(e.id) filter (where e.ended), array_agg(e.state) filter (where e.ended), array_agg(e.batch) filter (where e.ended),
    array_agg(e.id) filter (where e.unused)
    into written, ended, states, batches, unused
  from (select g.id, true, case g.outcome when 'crashed' then 'dead' else g.outcome end, g.batch, false from gone g
        union all select b.id, false, null, null, b.unused from back b) e(id, ended, state, batch, unused);
  if unused is not null then
    perform howdah.return_tokens(unused);
  end if;
  if ended is not null then
    perform howdah.note_ended(ended, states, batches, true);
  end if;
  return query select unnest(written);
end $$;

-- Writes completions that bring nothing but a result, and returns the ids that it did not write: howdah.ack for the many, at half its cost,
-- because it does not lock a row before it deletes it. So it may meet a row that somebody else holds: then it waits for a moment, writes
-- nothing and returns null, and whoever called it calls howdah.ack. The plan is pinned as the claim's is: from ids to rows by the primary key.
create function howdah.ack_completed(ids bigint[], leases bigint[], results jsonb[], ages float8[], runs float8[], keep boolean)
returns bigint[] language plpgsql
set jit = off set plan_cache_mode = force_generic_plan set enable_seqscan = off set enable_nestloop = off set enable_mergejoin = off set lock_timeout = '10ms' as $$
#variable_conflict use_column
declare
  moment  timestamptz := clock_timestamp();
  secrets boolean := exists (select from howdah.kinds k where k.secret <> '{}');
  ended   bigint[];
  batches bigint[];
begin
  with gone as (
    delete from howdah.jobs j
    using unnest(ack_completed.ids, ack_completed.leases, ack_completed.results, ack_completed.ages, ack_completed.runs) as d(id, lease, result, age, run)
    where j.id = any (ack_completed.ids) and j.id = d.id and j.lease = d.lease
    returning j.*, d.result, d.run, least(moment, greatest(j.claimed_at, coalesce(j.started_at, moment - d.age * interval '1 second'))) as began),
  kept as (
    insert into howdah.job_history (id, queue, kind, payload, priority, attempt, max_attempts, crashes, lease, leased_by, state, result, errors, progress,
      unique_key, subject, headers, batch, fifo_key, limits, retried_from, timeout, created_at, ready_at, claimed_at, started_at, finished_at)
    select g.id, g.queue, g.kind, case when secrets then howdah.without_secrets(g.kind, g.payload) else g.payload end,
      g.priority, g.attempt, g.max_attempts, g.crashes, g.lease, g.leased_by, 'completed', g.result, g.errors, g.progress,
      g.unique_key, g.subject, g.headers, g.batch, g.fifo_key, g.limits, g.retried_from, g.timeout,
      least(g.created_at, moment), g.ready_at, least(g.claimed_at, moment),    -- nothing later than this moment, as in howdah.ack
      g.began, greatest(g.began, least(moment, g.began + g.run * interval '1 second'))
    from gone g where ack_completed.keep)
  select array_agg(g.id), array_agg(g.batch) into ended, batches from gone g;
  if ended is not null then
    perform howdah.note_ended(ended, array_fill('completed'::text, array[cardinality(ended)]), batches, true);
  end if;
  if cardinality(ended) = cardinality(ack_completed.ids) then
    return '{}';
  end if;
  return array(select d.id from unnest(ack_completed.ids) d(id) where ended is null or d.id <> all (ended));
exception when lock_not_available then             -- caught here, or the server's log would tell of each
  return null;
end $$;

-- What became of acks that howdah.ack did not write: busy (try again), done (an earlier try wrote it) or lost. With no
-- history kept, an ack that was sent before and is now nowhere counts as done.
create function howdah.ack_fate(ids bigint[], leases bigint[], sent_before boolean[], keep boolean)
returns table (id bigint, fate text) language sql stable
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
select a.id,
  case when j.lease = a.lease then 'busy'
       when j.last_lease = a.lease then 'done'
       when j.id is null and exists (select from howdah.job_history h where h.id = a.id and h.lease = a.lease) then 'done'
       when j.id is null and not keep and a.sent_before then 'done'
       else 'lost' end
from unnest(ids, leases, sent_before) as a(id, lease, sent_before)
left join lateral (select k.id, k.lease, k.last_lease from howdah.jobs k where k.id = a.id limit 1) j on true $$;

-- What steps of a job gave so far; no row if the lease is not the current one, one without a name if there is nothing.
create function howdah.steps_of(job_id bigint, lease bigint) returns table (name text, result jsonb) language sql stable
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
select s.name, s.result from howdah.jobs j left join lateral (
  select k.name, k.result from howdah.steps k where k.job_id = steps_of.job_id offset 0) s on true
where j.id = steps_of.job_id and j.lease = steps_of.lease $$;

-- Writes that the handlers of these attempts started agos[i] seconds ago; gives the ids that it wrote, as howdah.ack does.
create function howdah.note_started(ids bigint[], leases bigint[], agos float8[]) returns setof bigint language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
begin
  return query
  with held as materialized (
    select locked.at, t.ago from unnest(note_started.ids, note_started.leases, note_started.agos) as t(id, lease, ago) cross join lateral (
      select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease for update skip locked) locked)
  update howdah.jobs j
  set started_at = coalesce(j.started_at, greatest(j.claimed_at, clock_timestamp() - held.ago * interval '1 second'))
  from held where j.ctid = held.at
  returning j.id;
end $$;

-- Writes how far the handlers of these attempts have come; gives the ids that it wrote, as howdah.ack does.
create function howdah.note_progress(ids bigint[], leases bigint[], progresses jsonb[]) returns setof bigint language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
begin
  return query
  with held as materialized (
    select locked.at, t.progress from unnest(note_progress.ids, note_progress.leases, note_progress.progresses) as t(id, lease, progress) cross join lateral (
      select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease for update skip locked) locked)
  update howdah.jobs j
  set progress = held.progress, progressed_at = greatest(j.claimed_at, clock_timestamp())
  from held where j.ctid = held.at
  returning j.id;
end $$;

-- Leaves to the rescue these jobs, which a worker holds and knows nothing of: they become those of a worker that has left. Gives their ids; a
-- row that somebody locks this moment is passed over. Touches no indexed column.
create function howdah.forsake(worker bigint, ids bigint[], leases bigint[]) returns setof bigint language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
begin
  return query
  with lost as materialized (
    select one.at from unnest(forsake.ids, forsake.leases) as t(id, lease) cross join lateral (
      select j.ctid as at from howdah.jobs j where j.id = t.id and j.lease = t.lease and j.leased_by = forsake.worker for update skip locked) one),
  ghost as (
    insert into howdah.workers (name, version, ttl, queues, kinds, started_at, beat_at)
    select w.name, w.version, interval '0', '{}', '{}', 'epoch', 'epoch' from howdah.workers w where w.id = forsake.worker and exists (select from lost)
    returning id)
  update howdah.jobs j set leased_by = ghost.id from lost, ghost where j.ctid = lost.at
  returning j.id;
end $$;

-- Completes one job inside the caller's transaction, so that what the caller wrote and the completion commit together.
-- Call it last: the job's row is locked from here to the commit. Refused (JB008) if the lease is not the current one.
-- `run` is how long the work took, in seconds; null: since the claim.
create function howdah.complete(job_id bigint, lease bigint, result jsonb default null, run float8 default null,
  progress jsonb default null) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  keep boolean := coalesce(current_setting('howdah.keep_history', true), 'on') <> 'off';
begin
  -- This waits, unlike the ack: only the engine locks a running row, and only for a moment.
  select coalesce(run, extract(epoch from clock_timestamp() - j.claimed_at)) into run
    from howdah.jobs j where j.id = job_id and j.lease = complete.lease for update;
  if found then
    perform howdah.ack(array[job_id], array[complete.lease], array['completed'], array[result], array[null::jsonb], array[null::float8], array[run], array[run],
      array[progress], keep);
    return 'completed';
  elsif exists (select from howdah.job_history h where h.id = job_id and h.lease = complete.lease and h.state = 'completed') then
    return 'completed';                            -- a repeat after a lost reply
  end if;
  perform howdah.refuse(array['JB008', format('job %s is not held under lease %s any more', job_id, complete.lease), 'stop working on it: somebody else has it, or it has ended']);
end $$;

-- Makes due jobs claimable, at most `count`, and tells how many it made and in how many seconds the next is due.
-- now() and not clock_timestamp(): a volatile bound cannot be an index condition. The plan is pinned as the claim's is.
create function howdah.promote(count int, out promoted int, out next_in float8) language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  queues text[];
begin
  with due as materialized (
    select j.ctid as at from howdah.jobs j where j.due_at <= now() order by j.due_at limit promote.count for update skip locked),
  ready as (
    update howdah.jobs j set due_at = null, ready_at = greatest(j.ready_at, j.due_at) from due where j.ctid = due.at returning j.queue)
  select count(*), array_agg(distinct r.queue) into promoted, queues from ready r;
  if promoted > 0 then
    perform howdah.wake(q.name) from unnest(queues) q(name);
  end if;
  if promoted = promote.count then
    next_in := 0;                                  -- there may be more
  else
    -- What is due and was passed over is held by somebody's open transaction: waiting for it would be waiting in a circle.
    select extract(epoch from j.due_at - clock_timestamp()) into next_in
      from howdah.jobs j where j.due_at > now() and j.due_at < 'infinity' order by j.due_at limit 1;
  end if;
end $$;

-- Makes one job of all visible events of each ripe key, and tells how many jobs it made and in how many seconds the next
-- key is ripe. One at a time: of two at once, one could take a key's old events and the other its new one, which would
-- be two runs in one delay. The lock is taken in a statement of its own, so that the next one sees what the last did.
-- The table is mostly empty when its statistics are taken, so the plan is pinned: from the keys to their events by index,
-- from there by place. A join would compare all with all (20 s for 20,000 events).
create function howdah.coalesce_events(count int, out made int, out next_in float8) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  queues text[];
begin
  made := 0;
  if not howdah.try_lock(7316042, 1) then return; end if;
  with ripe as materialized (
    select e.kind, e.key from howdah.events e where e.due_at <= now() group by e.kind, e.key
    order by min(e.due_at) limit coalesce_events.count),
  gone as (
    delete from howdah.events e
    where e.ctid = any (array(select one.at from ripe r cross join lateral (
      select s.ctid as at from howdah.events s where s.kind = r.kind and s.key = r.key offset 0) one))
    returning e.*),
  last as (
    select distinct on (g.kind, g.key) g.*, (min(g.due_at) over (partition by g.kind, g.key)) as ripe_at
    from gone g order by g.kind, g.key, g.id desc),
  job as (
    insert into howdah.jobs (queue, kind, payload, priority, max_attempts, timeout, subject, ready_at, limits)
    select coalesce(l.queue, k.queue, 'default'), l.kind, l.payload, coalesce(l.priority, k.priority, 0), coalesce(k.max_attempts, 3), k.timeout, l.subject, l.ripe_at,
      case when coalesce(k.limited, (select s.limited from howdah.settings s)) then howdah.with_standing(null, l.kind, coalesce(l.queue, k.queue, 'default')) end
    from last l left join howdah.kinds k on k.name = l.kind order by l.id
    returning queue)
  select count(*), array_agg(distinct j.queue) into made, queues from job j;
  if made > 0 then
    perform howdah.wake(q.name) from unnest(queues) q(name);
  end if;
  select extract(epoch from e.due_at - clock_timestamp()) into next_in from howdah.events e order by e.due_at limit 1;
end $$;

-- A worker says that it lives. No row: it has been taken for dead, its jobs are others'. `leads`: it does the upkeep
-- that is needed once for all workers. `suspects` wait to be run, `signals` to be heard by who holds their jobs.
create function howdah.worker_beat(worker bigint) returns table (leads boolean, suspects boolean, signals boolean) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
declare
  lease interval;
begin
  -- Not the later of both: after a step back the next beat would be years ahead.
  update howdah.workers w set beat_at = clock_timestamp() where w.id = worker_beat.worker returning w.ttl into lease;
  if not found then return; end if;
  update howdah.leader l set worker = worker_beat.worker, until = clock_timestamp() + lease
    where l.worker = worker_beat.worker or l.until < clock_timestamp() or not exists (select from howdah.workers w where w.id = l.worker);
  leads := found;
  suspects := exists (select from howdah.jobs j where j.due_at is null and j.suspect);
  signals := exists (select from howdah.signals s);
  return next;
end $$;

-- Takes back the jobs of the workers that are dead, at most `count` at once, and removes the worker's row when it holds
-- none any more. A job that had not started comes back unpunished; a suspect whose start was written gets a crash, and
-- with the second it is dead; an at-most-once job that had started is dead. There is no index to go by, on purpose:
-- looking at workers comes first, and only a dead one costs a scan.
-- Beats say who lives only while the clock runs evenly: a step makes all look dead, or the dead alive. The caller, whose own monotonic clock nobody
-- sets, tells what this one should show (`expected`) and for how many seconds it has run `even`ly; null: it vouches for it. Nobody rescues its own jobs:
-- a worker that was frozen, and that nobody took for dead, just beats again.
create function howdah.rescue(count int default 10000, expected timestamptz default null, even float8 default null, rescuer bigint default null)
returns table (worker bigint, name text, rescued int, buried int, beat_age float8)
language plpgsql as $$
#variable_conflict use_variable
declare
  dead howdah.workers;
  mine record;
  -- After an outage of the server, or of the wire, nobody has had time to beat.
  quiet timestamptz := greatest(pg_postmaster_start_time(), (select a.backend_start from pg_stat_get_activity(pg_backend_pid()) a));
begin
  for dead in select w.* from howdah.workers w
              where w.id is distinct from rescuer and (w.beat_at = 'epoch'                                             -- it has left and said so
                 or abs(extract(epoch from clock_timestamp() - w.beat_at)) > extract(epoch from w.ttl)   -- ahead: it died before the clock was set back
                and (quiet < clock_timestamp() - w.ttl or quiet > clock_timestamp())
                and (even is null or even >= extract(epoch from w.ttl) and clock_timestamp() between expected - w.ttl / 3 and expected + w.ttl / 3))
              order by w.id for update skip locked loop
    select array_agg(j.id) as ids, array_agg(j.lease) as leases, array_agg(j.outcome) as outcomes, count(*) as jobs,
           array_agg(case j.outcome when 'crashed' then jsonb_build_object('type', 'WorkerDied', 'message', j.reason) end) as errors
      into mine
      from (select j.id, j.lease,
              case when j.started_at is not null and (j.max_attempts = 1 or (j.suspect and j.crashes + 1 >= 2)) then 'crashed' else 'rescued' end as outcome,
              case when j.max_attempts = 1 then format('worker %s died while it ran, and it may run at most once', dead.name)
                   else format('worker %s died while it ran alone; it has brought down %s workers', dead.name, j.crashes + 1) end as reason
            from howdah.jobs j where j.leased_by = dead.id limit rescue.count) j;
    worker := dead.id; name := dead.name; beat_age := extract(epoch from clock_timestamp() - dead.beat_at);
    rescued := 0; buried := 0;
    if mine.jobs > 0 then
      select count(*) filter (where o.outcome = 'rescued'), count(*) filter (where o.outcome = 'crashed') into rescued, buried
        from howdah.ack(mine.ids, mine.leases, mine.outcomes, array_fill(null::jsonb, array[mine.jobs::int]), mine.errors,
               array_fill(null::float8, array[mine.jobs::int]), array_fill(null::float8, array[mine.jobs::int]), array_fill(null::float8, array[mine.jobs::int]),
               array_fill(null::jsonb, array[mine.jobs::int]), true) a(id)
        join unnest(mine.ids, mine.outcomes) o(id, outcome) on o.id = a.id;
    end if;
    if not exists (select from howdah.jobs j where j.leased_by = dead.id) then
      delete from howdah.workers w where w.id = dead.id;
    end if;
    return next;
  end loop;
  if found then
    perform howdah.wake_all(), howdah.notify('howdah_control', 'suspects');
  end if;
end $$;

-- Makes the partitions of history from today to `ahead` days on, and tells how many days from today are ready.
-- Create and attach, never `create … partition of`: attaching lets reads and writes of the parent go on.
create function howdah.make_partitions(ahead int default 14) returns int
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp set lock_timeout = '200ms' as $$
declare
  today date := (clock_timestamp() at time zone 'UTC')::date;
  day   date;
  name  text;
begin
  begin
    perform howdah.take_lock(7316042, 2);     -- two makers would wait for each other's names
  exception when lock_not_available then           -- the other one's work counts once it is committed
    return (select coalesce(min(n), ahead + 1) from generate_series(0, ahead) n
            where to_regclass(format('howdah.job_history_%s', to_char(today + n, 'YYYYMMDD'))) is null);
  end;
  for day in select today + n from generate_series(0, ahead) n loop
    name := format('job_history_%s', to_char(day, 'YYYYMMDD'));
    continue when to_regclass(format('howdah.%I', name)) is not null;
    begin
      execute format('create table howdah.%I (like howdah.job_history including all)', name);
      execute format('alter table howdah.job_history attach partition howdah.%I for values from (%L) to (%L)',
                     name, to_char(day, 'YYYY-MM-DD') || ' 00:00:00+00', to_char(day + 1, 'YYYY-MM-DD') || ' 00:00:00+00');
    exception when lock_not_available then
      return day - today;                          -- tried again later; there are days in hand
    end;
  end loop;
  return ahead + 1;
end $$;

-- Drops the days of history that are older than `days` (1 or more), with the steps of jobs that ended before, and tells which. Detach, then drop: dropping an attached
-- partition would hold the parent's lock while the files go.
create function howdah.drop_partitions(days int) returns setof text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp set lock_timeout = '200ms' as $$
declare
  oldest text := format('job_history_%s', to_char((clock_timestamp() at time zone 'UTC')::date - days, 'YYYYMMDD'));
  name   text;
begin
  if days < 1 then
    perform howdah.refuse(array['JB002', format('days is %s', days), 'at least 1: today is being written']);
  end if;
  -- Before the days: with one of those detached, every ack waits until this has committed.
  begin
    delete from howdah.steps s where s.created_at < clock_timestamp() - days * interval '1 day'
      and not exists (select from howdah.jobs j where j.id = s.job_id);
  exception when lock_not_available then
    null;                                          -- somebody has the whole table, or one of these rows
  end;
  for name in select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
              where i.inhparent = 'howdah.job_history'::regclass and c.relname < oldest collate "C" order by c.relname loop
    begin
      execute format('alter table howdah.job_history detach partition howdah.%I', name);
      execute format('drop table howdah.%I', name);
      return next name;
    exception when lock_not_available then
      return;                                      -- somebody reads history; tried again later
    end;
  end loop;
end $$;

select howdah.make_partitions();

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

-- Who waits for the end of jobs: other jobs (depends_on), the job behind a batch, and programs that want to know.
--
-- Every end of a job is told to howdah.note_ended in the transaction that ends it, and that is the fast way. It never waits for
-- a row, so it may have to pass something over; and a dependent whose transaction commits after the job has ended is seen by
-- nobody. Both are found by howdah.settle, which compares what waits with what lives: correct by itself, only later.
--
-- `xmax = 0 or xmax = xmin` tells of a live job, without locking it, that nobody else was ending it when it was read: whoever ends it
-- locks it later, and looks later. (A claim locks what it then writes: its number stands in both.) Of any other nobody can know.
--
-- These tables are mostly empty when their statistics are taken, and a session keeps a plan that it made for empty ones. So plans are pinned: from what
-- is known to rows by their index. `offset 0` keeps a subquery from becoming a join, which the planner would begin at a table that it takes for empty;
-- `not isfinite(due_at)` is `due_at = 'infinity'` said so that no index answers it.

-- Lets a job wait for those of `depends_on` that have not completed, and tells whether there are any. Refused (JB007) for a
-- job that is nowhere: an id from a transaction that has not committed, or one whose history is gone.
create function howdah.depend(job_id bigint, depends_on bigint[], required boolean) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  missing bigint;
  batch   bigint := (select j.batch from howdah.jobs j where j.id = depend.job_id);
begin
  -- A member that waits for its own batch would wait for ever. Other members were looked at when they came.
  if batch is not null and exists (
      with recursive ahead(id) as (
        select w.id from unnest(depends_on) w(id) where not exists (select from howdah.jobs j where j.id = w.id and j.batch = batch offset 0)
        union
        select n.id from ahead a cross join lateral (
          select d.depends_on as id from howdah.dependencies d where d.job_id = a.id
          union all select m.id from howdah.jobs m where m.batch = a.id and not isfinite(m.due_at) offset 0) n
        where not exists (select from howdah.jobs j where j.id = n.id and j.batch = batch offset 0))
      select from (select a.id from ahead a limit 10000) a where a.id = batch) then
    perform howdah.refuse(array['JB002', format('depends_on: it would wait for the end of batch %s, of which it is to be a part', batch), 'leave one of them out']);
  end if;
  with wanted as (
    select distinct w.id from unnest(depends_on) w(id)),
  found as materialized (
    select w.id, coalesce(j.state, h.state) as state
    from wanted w left join lateral (select j.state from howdah.jobs j where j.id = w.id and w.id <> depend.job_id limit 1) j on true
    left join lateral (select h.state from howdah.job_history h where h.id = w.id limit 1) h on j.state is null),
  kept as (
    insert into howdah.dependencies (job_id, depends_on, required, outcome)
    select depend.job_id, f.id, depend.required, case when f.state in ('dead', 'cancelled') then f.state end
    from found f where f.state <> 'completed' and (depend.required or f.state not in ('dead', 'cancelled')) order by f.id)
  select min(f.id) filter (where f.state is null) into missing from found f;
  if missing is not null then
    perform howdah.refuse(array['JB007', format('depends_on: there is no job %s', missing), 'enqueue it first, in this transaction or in one that has committed']);
  end if;
  if not exists (select from howdah.dependencies d where d.job_id = depend.job_id) then return false; end if;
  update howdah.jobs j set due_at = 'infinity' where j.id = depend.job_id;
  perform howdah.notify('howdah_control', 'settle');   -- heard after the commit: one of them may have ended before it
  return true;
end $$;

-- Opens a batch: a job that waits until every job that is enqueued with `batch => its id` has ended, and then runs once, with
-- headers.batch = {"completed", "dead", "cancelled"}. Gives that id. Enqueue the first members in the same transaction: a
-- batch without a living member is over. Members may enqueue more members.
create function howdah.create_batch(kind text, payload jsonb default '{}', queue text default null, priority int default null,
  max_attempts int default null, timeout interval default null, unique_key text default null, subject text default null,
  headers jsonb default null)
returns bigint language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  batch bigint;
begin
  select e.id into batch from howdah.enqueue(create_batch.kind, create_batch.payload, create_batch.queue, create_batch.priority,
    delay => interval '1 day', max_attempts => create_batch.max_attempts, timeout => create_batch.timeout,
    unique_key => create_batch.unique_key, on_conflict => 'error', subject => create_batch.subject, headers => create_batch.headers) e;
  update howdah.jobs j set due_at = 'infinity', ready_at = j.created_at where j.id = batch;
  insert into howdah.batches values (batch);
  perform howdah.notify('howdah_control', 'settle');   -- heard after the commit: it may be empty, or over already
  return batch;
end $$;

-- Keeps a batch open until the caller's transaction ends, so that a job can join it. Refused (JB007) once it is over. Callers do
-- not wait for one another: the lock is shared, and conflicts only with the one that ends the batch.
create function howdah.join_batch(batch bigint) returns void language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
begin
  perform from howdah.jobs j where j.id = join_batch.batch and not isfinite(j.due_at) and exists (select from howdah.batches b where b.id = join_batch.batch)
    for key share of j;
  if not found then
    perform howdah.refuse(array['JB007', format('batch %s is over, or was never opened', batch), 'howdah.create_batch gives the id; a batch is over when all of its jobs have ended']);
  end if;
end $$;

-- Tells of jobs that ended in this transaction: programs that wait for them, jobs that depend on them, batches that they belong
-- to. states[i] is completed, dead or cancelled. Never waits for a row. `brief`: this transaction ends at once, so it may hold what
-- waits; one that stays open must not, or nobody could join a batch meanwhile: it leaves the rest to howdah.settle. So does one
-- with an old snapshot, which cannot see who has joined, and so does the end of a job for which very many wait.
-- What nobody waits for pays a look into each index. Pinned: the tables are mostly empty when their statistics are taken.
create function howdah.note_ended(ids bigint[], states text[], batches bigint[], brief boolean) returns void language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  acts    boolean := brief and current_setting('transaction_isolation') = 'read committed';
  -- Without history, how a job failed is told here or nowhere.
  most    int := case when 'dead' = any (states) or 'cancelled' = any (states) then null else 1000 end;
  heard   bigint[];
  waiting bigint[];
  groups  bigint[];
  batch   bigint;
  passed  boolean := false;
begin
  if exists (select from howdah.waiters w where w.job_id = any (note_ended.ids)) then
    with free as materialized (
      select w.ctid as at from howdah.waiters w where w.job_id = any (note_ended.ids) for update skip locked),
    gone as (
      delete from howdah.waiters w using free where w.ctid = free.at returning w.job_id)
    select array_agg(distinct g.job_id) into heard from gone g;
    perform howdah.notify('howdah_control', 'ended ' || h.id) from unnest(heard) h(id);
  end if;

  if exists (select from howdah.dependencies d where d.depends_on = any (note_ended.ids) and d.outcome is null) then
    with free as materialized (
      select d.ctid as at from howdah.dependencies d where d.depends_on = any (note_ended.ids) and d.outcome is null limit most for update skip locked),
    marked as (
      update howdah.dependencies d set outcome = e.state from free, unnest(note_ended.ids, note_ended.states) e(id, state)
      where d.ctid = free.at and e.id = d.depends_on returning d.job_id)
    select array_agg(distinct m.job_id) into waiting from marked m;
    passed := exists (select from howdah.dependencies d where d.depends_on = any (note_ended.ids) and d.outcome is null);
  end if;

  if exists (select from howdah.batches b where b.id = any (note_ended.ids)) then     -- a job behind a batch that was cancelled itself
    delete from howdah.batch_ends e where e.batch = any (note_ended.ids);
    delete from howdah.batches b where b.id = any (note_ended.ids);
  end if;
  if array_remove(note_ended.batches, null) <> '{}' then
    with ends as (
      insert into howdah.batch_ends (batch, completed, dead, cancelled)
      select e.batch, count(*) filter (where e.state = 'completed'), count(*) filter (where e.state = 'dead'), count(*) filter (where e.state = 'cancelled')
      from unnest(note_ended.batches, note_ended.states) e(batch, state)
      where exists (select from howdah.batches b where b.id = e.batch offset 0) group by e.batch order by e.batch
      returning batch)
    select array_agg(e.batch order by e.batch) into groups from ends e;
  end if;

  if acts then
    passed := howdah.resolve(waiting[:1000]) <> '{}' or cardinality(waiting) > 1000 or passed;
    foreach batch in array coalesce(groups, '{}') loop
      passed := not howdah.end_batch(batch) or passed;
    end loop;
  end if;
  if passed or not acts and (waiting is not null or groups is not null) then
    perform howdah.notify('howdah_control', 'settle');  -- heard after the commit, by somebody who can see all of it
  end if;
end $$;

-- Acts on what is known of the dependencies of these jobs: lets those go that have none left, and cancels those that lost one they
-- need. Gives those that somebody holds this moment.
create function howdah.resolve(ids bigint[]) returns bigint[] language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  mine    bigint[];
  lost    record;
  gone    howdah.jobs;
  ended   bigint[] := '{}';
  batches bigint[] := '{}';
  queues  text[];
  later   boolean;
begin
  if ids is null then return '{}'; end if;
  select array_agg(f.id) into mine from (select j.id from howdah.jobs j where j.id = any (resolve.ids) order by j.id for update skip locked) f;
  delete from howdah.dependencies d where d.job_id = any (mine) and (d.outcome = 'completed' or d.outcome is not null and not d.required);
  -- What completes from here on is marked by others, who do not wait for us: it is no loss, and is dealt with by the next look.
  for lost in select distinct on (d.job_id) d.job_id, d.depends_on, d.outcome from howdah.dependencies d
              where d.job_id = any (mine) and d.required and d.outcome <> 'completed' order by d.job_id, d.depends_on loop
    delete from howdah.jobs j where j.id = lost.job_id and j.lease is null returning j.* into gone;
    if found then
      perform howdah.bury_cancelled(gone, 'howdah', format('it depends on job %s, which is %s', lost.depends_on, lost.outcome));
      ended := ended || gone.id;
      batches := batches || gone.batch;
    end if;
  end loop;
  if ended <> '{}' then
    perform howdah.note_ended(ended, array_fill('cancelled'::text, array[cardinality(ended)]), batches, false);
  end if;
  with free as (
    update howdah.jobs j set due_at = case when j.ready_at > clock_timestamp() then j.ready_at end, ready_at = greatest(j.ready_at, clock_timestamp())
    where j.id = any (mine) and not isfinite(j.due_at) and not exists (select from howdah.dependencies d where d.job_id = j.id offset 0)
      and not exists (select from howdah.batches b where b.id = j.id offset 0)
    returning j.queue, j.due_at)
  select array_agg(distinct f.queue) filter (where f.due_at is null), bool_or(f.due_at is not null) into queues, later from free f;
  perform howdah.wake(q.name) from unnest(queues) q(name);
  if later then perform howdah.notify('howdah_control', 'due'); end if;
  delete from howdah.dependencies d using (               -- what somebody held when their job was cancelled
    select d.ctid as at from howdah.dependencies d where d.job_id = any (resolve.ids) and d.outcome is not null
      and not exists (select from howdah.jobs j where j.id = d.job_id offset 0) for update skip locked) old where d.ctid = old.at;
  return coalesce((select array_agg(distinct d.job_id) from howdah.dependencies d where d.job_id = any (resolve.ids) and d.outcome is not null), '{}');
end $$;

-- Lets the job behind a batch go if no member lives any more, with the counts of how they ended. False: nobody can know this moment.
-- The lock comes first and the look in a statement of its own: whoever joined has committed by then, or joins no more. A member
-- that is there for sure comes before both: its end is somebody's who comes later, and acks need not take turns at the lock.
create function howdah.end_batch(batch bigint) returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  queue text;
begin
  if exists (select from howdah.jobs j where j.batch = end_batch.batch and (j.xmax = 0 or j.xmax = j.xmin)) then return true; end if;
  perform from howdah.jobs j where j.id = end_batch.batch and not isfinite(j.due_at) for update skip locked;
  if not found then
    return not exists (select from howdah.batches b where b.id = end_batch.batch);
  end if;
  if exists (select from howdah.jobs j where j.batch = end_batch.batch) then return false; end if;
  delete from howdah.batches b where b.id = end_batch.batch;
  if not found then return true; end if;
  with ends as (
    delete from howdah.batch_ends e where e.batch = end_batch.batch returning e.*),
  total as (
    select coalesce(sum(e.completed), 0) as completed, coalesce(sum(e.dead), 0) as dead, coalesce(sum(e.cancelled), 0) as cancelled from ends e)
  update howdah.jobs j set due_at = null, ready_at = clock_timestamp(),
    headers = coalesce(j.headers, '{}') || jsonb_build_object('batch', jsonb_build_object('completed', t.completed, 'dead', t.dead, 'cancelled', t.cancelled))
  from total t where j.id = end_batch.batch returning j.queue into queue;
  perform howdah.wake(queue);
  return true;
end $$;

-- Compares what waits with what lives and lets go what has nothing left to wait for; tells how many jobs and batches that were, and in
-- how many seconds to look again: 0 if there may be more than `count`, 1 if somebody holds something, null if all is known. The slow
-- way, to be called now and then, and on the word `settle`. One caller at a time does it; it never waits for a row.
-- A job that is neither alive nor in history counts as completed: there is no history, or it ended long ago.
create function howdah.settle(count int default 10000, out seen int, out next_in float8) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  waiting bigint[];
  passed  bigint[] := '{}';
  stuck   bigint[];
  held    boolean;
  batch   bigint;
begin
  seen := 0;
  if current_setting('transaction_isolation') <> 'read committed' then
    perform howdah.refuse(array['JB002', 'howdah.settle must see what has just been committed', 'call it at isolation level read committed']);
  end if;
  if not howdah.try_lock(7316042, 3) then
    next_in := 1;                                    -- whoever is at it may have looked too early for us, or die
    return;
  end if;
  with late as materialized (
    select d.ctid as at, d.depends_on, exists (select from howdah.jobs j where j.id = d.depends_on offset 0) as lives from howdah.dependencies d
    where d.outcome is null and not exists (           -- who has joined a batch leaves a mark on its job, which waits
      select from howdah.jobs j where j.id = d.depends_on and (j.xmax = 0 or j.xmax = j.xmin or j.due_at = 'infinity') offset 0)
    limit settle.count for update skip locked),
  marked as (
    update howdah.dependencies d set outcome = coalesce((select h.state from howdah.job_history h where h.id = l.depends_on limit 1), 'completed')
    from late l where d.ctid = l.at and not l.lives)
  select coalesce(bool_or(l.lives), false) into held from late l;
  loop                                               -- what is cancelled cancels others: a round a level
    select array_agg(d.job_id) into waiting
      from (select distinct d.job_id from howdah.dependencies d where d.outcome is not null and d.job_id <> all (passed) limit settle.count - seen) d;
    exit when waiting is null;
    stuck := howdah.resolve(waiting);
    passed := passed || stuck;
    seen := seen + cardinality(waiting) - cardinality(stuck);
  end loop;
  foreach batch in array coalesce((select array_agg(b.id order by b.id) from (
      select b.id from howdah.batches b
      where not exists (select from howdah.jobs j where j.batch = b.id and (j.xmax = 0 or j.xmax = j.xmin) offset 0) limit settle.count) b), '{}') loop
    if howdah.end_batch(batch) then seen := seen + 1; else held := true; end if;
  end loop;
  delete from howdah.batch_ends e using (
    select e.ctid as at from howdah.batch_ends e where not exists (select from howdah.batches b where b.id = e.batch offset 0) for update skip locked) old
    where e.ctid = old.at;
  delete from howdah.waiters w using (
    select w.ctid as at from howdah.waiters w where w.until < now() - interval '1 minute' for update skip locked) old where w.ctid = old.at;
  perform howdah.sweep_limits();
  next_in := case when seen >= settle.count then 0 when held or passed <> '{}' then 1 end;
end $$;

-- Asks to be told of the end of a job within so many seconds, at most an hour, on channel howdah_control as `ended <id>`, and gives its state now.
-- Refused (JB007) for a job that is nowhere. The word may be lost: whoever waits looks now and then.
create function howdah.watch(job_id bigint, waiter text, seconds float8 default 60) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  state text;
begin
  insert into howdah.waiters as w (job_id, waiter, until) values (job_id, waiter, clock_timestamp() + least(seconds, 3600) * interval '1 second')
    on conflict on constraint waiters_pkey do update set until = excluded.until;
  -- A statement of its own: what ends after this look sees the row above.
  select s.state into state from howdah.job_status s where s.id = job_id;
  if state is null then
    perform howdah.refuse(array['JB007', format('there is no job %s', job_id), 'its history may have been dropped']);
  end if;
  if state in ('completed', 'dead', 'cancelled') then
    delete from howdah.waiters w where w.job_id = watch.job_id and w.waiter = watch.waiter;
  end if;
  return state;
end $$;

-- Keeps what a step of a job gave, if the lease is the current one, and gives what is kept: the first result of that name. Null: the
-- lease is lost. Safe to repeat.
create function howdah.keep_step(job_id bigint, lease bigint, name text, result jsonb) returns jsonb language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  kept jsonb;
begin
  perform from howdah.jobs j where j.id = job_id and j.lease = keep_step.lease for update;
  if not found then return null; end if;
  insert into howdah.steps as s (job_id, name, result) values (job_id, name, result) on conflict on constraint steps_pkey do nothing;
  select s.result into kept from howdah.steps s where s.job_id = keep_step.job_id and s.name = keep_step.name;
  return kept;
end $$;

-- Enqueues many jobs if nobody makes us wait, and tells whether it did: false if somebody holds a unique key or a batch this moment.
create function howdah.enqueue_unless_held(jobs jsonb) returns boolean language plpgsql set lock_timeout = '50ms' as $$
begin
  perform howdah.enqueue_many(jobs);
  return true;
exception when lock_not_available or deadlock_detected then
  return false;
end $$;

-- Acks one job and enqueues others (an array as for enqueue_many) in one commit; false, and nothing is enqueued, if the ack was not
-- written: howdah.ack_fate tells why. The others come first: they may join this job's batch.
create function howdah.ack_with(job_id bigint, lease bigint, outcome text, result jsonb, error jsonb, delay float8, age float8, run float8,
  progress jsonb, keep boolean, jobs jsonb)
returns boolean language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
begin
  perform from howdah.jobs j where j.id = job_id and j.lease = ack_with.lease for update skip locked;
  if not found then return false; end if;
  if not howdah.enqueue_unless_held(jobs) then return false; end if;
  return exists (select from howdah.ack(array[job_id], array[lease], array[outcome], array[result], array[error], array[delay], array[age],
                                        array[run], array[progress], keep));
end $$;

-- What people and programs may do to jobs and queues: cancel, retry, reschedule, pause, resume.

-- Ends a live job that no worker holds: one row from jobs to history, as cancelled. The caller has deleted it, and tells
-- howdah.note_ended when its statement is over: what that changes may be in the same statement's reach.
create function howdah.bury_cancelled(job howdah.jobs, by text, reason text) returns boolean language sql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
delete from howdah.dependencies d using (     -- what somebody else holds goes when that one has ended, by howdah.resolve
  select d.ctid as at from howdah.dependencies d where d.job_id = job.id for update skip locked) free where d.ctid = free.at;
insert into howdah.job_history (id, queue, kind, payload, priority, attempt, max_attempts, crashes, lease, leased_by, state, errors, progress,
  cancelled_by, cancel_reason, unique_key, subject, headers, batch, fifo_key, limits, retried_from, timeout, created_at, ready_at, finished_at)
values (job.id, job.queue, job.kind, howdah.without_secrets(job.kind, job.payload), job.priority, job.attempt, job.max_attempts, job.crashes, job.last_lease, null, 'cancelled',
  job.errors, job.progress, by, reason, job.unique_key, job.subject, job.headers, job.batch, job.fifo_key, job.limits, job.retried_from, job.timeout,
  least(job.created_at, clock_timestamp()), job.ready_at, clock_timestamp());   -- as in howdah.ack
select true $$;

-- Cancels one job and gives its state after that. A queued one ends at once. A running one is told within a second, and
-- keeps its true outcome if it ends first; nobody but the engine locks a running row, so the request is a row of signals.
create function howdah.cancel(job_id bigint, by text default null, reason text default null) returns text
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  gone  howdah.jobs;
  ended text;
begin
  delete from howdah.jobs j where j.id = job_id and j.lease is null returning j.* into gone;
  if found then
    perform howdah.bury_cancelled(gone, by, reason), howdah.note_ended(array[gone.id], array['cancelled'], array[gone.batch], false);
    return 'cancelled';
  end if;
  if exists (select from howdah.jobs j where j.id = job_id) then
    insert into howdah.signals (job_id, signal, by, reason) values (job_id, 'cancel', by, reason);
    perform howdah.notify('howdah_control', 'cancel');
    return 'running';
  end if;
  select h.state into ended from howdah.job_history h where h.id = job_id;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no job %s', job_id), 'its history may have been dropped']);
  end if;
  return ended;
end $$;

-- Cancels every live job of a subject and gives their number.
create function howdah.cancel_subject(subject text, by text default null, reason text default null) returns bigint
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  ended   bigint;
  told    bigint;
  ids     bigint[];
  batches bigint[];
begin
  with mine as materialized (        -- in id order, as everybody who locks several jobs
    select j.id from howdah.jobs j where j.subject = cancel_subject.subject and j.lease is null order by j.id for update),
  gone as (
    delete from howdah.jobs j using mine where j.id = mine.id and j.lease is null returning j)
  select count(howdah.bury_cancelled(g.j, by, reason)), array_agg((g.j).id), array_agg((g.j).batch) into ended, ids, batches from gone g;
  if ended > 0 then
    perform howdah.note_ended(ids, array_fill('cancelled'::text, array[ended::int]), batches, false);
  end if;
  insert into howdah.signals (job_id, signal, by, reason)
  select j.id, 'cancel', by, reason from howdah.jobs j where j.subject = cancel_subject.subject and j.lease is not null;
  get diagnostics told = row_count;
  if told > 0 then perform howdah.notify('howdah_control', 'cancel'); end if;
  return ended + told;
end $$;

-- Carries out requests to cancel whose job is no longer running, forgets those whose job has ended, and gives the others:
-- what a worker compares with the jobs that it holds.
create function howdah.apply_signals() returns table (job_id bigint, by text, reason text) language plpgsql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_column
declare
  one  record;
  gone howdah.jobs;
begin
  for one in select s.job_id, min(s.id) as first from howdah.signals s
             where exists (select from howdah.jobs j where j.id = s.job_id and j.lease is null offset 0) group by s.job_id order by s.job_id loop
    delete from howdah.jobs j where j.id = (select k.id from howdah.jobs k where k.id = one.job_id and k.lease is null for update skip locked)
      returning j.* into gone;
    if found then
      perform howdah.bury_cancelled(gone, s.by, s.reason) from howdah.signals s where s.id = one.first;
      perform howdah.note_ended(array[gone.id], array['cancelled'], array[gone.batch], true);
    end if;
  end loop;
  delete from howdah.signals s where not exists (select from howdah.jobs j where j.id = s.job_id offset 0);
  return query select distinct on (s.job_id) s.job_id, s.by, s.reason from howdah.signals s order by s.job_id, s.id;
end $$;

-- Makes a new job of an ended one, with all its attempts before it, and gives the new id. The old one stays as it was.
create function howdah.retry(job_id bigint) returns bigint
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  old    howdah.job_history;
  new_id bigint;
begin
  select h.* into old from howdah.job_history h where h.id = job_id;
  if not found then
    perform howdah.refuse(case when exists (select from howdah.jobs j where j.id = job_id)
      then array['JB007', format('job %s has not ended yet', job_id), 'only an ended job can be retried']
      else array['JB007', format('there is no job %s', job_id), 'its history may have been dropped'] end);
  end if;
  insert into howdah.jobs (queue, kind, payload, priority, max_attempts, timeout, unique_key, subject, headers, retried_from, limits, fifo_key)
  values (old.queue, old.kind, old.payload, old.priority, old.max_attempts, old.timeout, old.unique_key, old.subject, old.headers, old.id, howdah.with_standing(old.limits, old.kind, old.queue), old.fifo_key)
  on conflict (unique_key) where unique_key is not null do nothing
  returning id into new_id;
  if new_id is null then
    perform howdah.refuse(array['JB005', format('a live job has the unique_key %L', old.unique_key), 'wait for it, or cancel it']);
  end if;
  perform howdah.wake(old.queue);
  return new_id;
end $$;

-- Moves a queued job to another time. Refused for a running or an ended one.
create function howdah.reschedule(job_id bigint, run_at timestamptz) returns void
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
#variable_conflict use_variable
declare
  due   timestamptz := case when run_at > clock_timestamp() then run_at end;
  queue text;
begin
  if run_at is null or run_at in ('infinity', '-infinity') then
    perform howdah.refuse(array['JB002', format('run_at is %L', run_at), 'a time that comes']);
  end if;
  update howdah.jobs j set due_at = due, ready_at = coalesce(due, clock_timestamp())
    where j.id = job_id and j.lease is null and j.due_at is distinct from 'infinity' returning j.queue into queue;
  if not found then
    perform howdah.refuse(array['JB007', format('job %s is not queued', job_id), 'only a queued job can be moved']);
  end if;
  if due is null then perform howdah.wake(queue); else perform howdah.notify('howdah_control', 'due'); end if;
end $$;

-- Stops the claims of a queue; what runs goes on. Claims look at this themselves, so it holds from the commit on.
create function howdah.pause(queue text, by text default null) returns void
language sql security definer set search_path = pg_catalog, howdah, pg_temp as $$
insert into howdah.queues as q (name, paused_at, paused_by) values (pause.queue, clock_timestamp(), pause.by)
on conflict (name) do update set paused_at = coalesce(q.paused_at, excluded.paused_at), paused_by = coalesce(q.paused_by, excluded.paused_by) $$;

-- Lets a queue be claimed again, and wakes its workers.
create function howdah.resume(queue text) returns void
language sql security definer set search_path = pg_catalog, howdah, pg_temp as $$
update howdah.queues q set paused_at = null, paused_by = null where q.name = resume.queue;
select howdah.notify('howdah', resume.queue) $$;

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

-- Why a job is not running, in a sentence or two, and what would change that.

-- A length of time for people: 850 ms, 12 s, 3 min, 5 h, 2 days.
create function howdah.humane(length interval) returns text language sql immutable parallel safe as $$
select case
  when s < 1     then format('%s ms', round(s * 1000))
  when s < 120   then format('%s s', round(s))
  when s < 7200  then format('%s min', round(s / 60))
  when s < 172800 then format('%s h', round(s / 3600))
  else format('%s days', round(s / 86400)) end
from (select abs(extract(epoch from length)) as s) one $$;

-- The last error of a list, in a line.
create function howdah.last_error(errors jsonb) returns text language sql immutable parallel safe as $$
select coalesce(nullif(concat_ws(': ', errors -> -1 ->> 'type', left(split_part(errors -> -1 ->> 'message', E'\n', 1), 200)), ''), 'no error on record') $$;

create function howdah.explain(job_id bigint) returns text
language plpgsql stable security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  now   timestamptz := clock_timestamp();
  live  howdah.jobs;
  ended howdah.job_history;
begin
  select j.* into live from howdah.jobs j where j.id = explain.job_id;
  if found then
    return format('Job %s (%s) ', live.id, live.kind) || case live.state
      when 'running' then howdah.explain_running(live, now)
      when 'waiting' then case when live.due_at is null then howdah.explain_ready(live, now) else howdah.explain_waiting(live) end
      when 'scheduled' then format('is scheduled for %s, in %s; howdah.reschedule moves it.', to_char(live.due_at, 'YYYY-MM-DD HH24:MI:SS TZ'), howdah.humane(live.due_at - now))
      when 'retrying' then format('failed in attempt %s of %s (%s) and is tried again at %s, in %s; howdah.reschedule moves it.', live.attempt, live.max_attempts,
        howdah.last_error(live.errors), to_char(live.due_at, 'YYYY-MM-DD HH24:MI:SS TZ'), howdah.humane(live.due_at - now))
      else howdah.explain_ready(live, now) end
      || case when live.expires_at is not null and live.started_at is null then format(' It expires at %s.', to_char(live.expires_at, 'YYYY-MM-DD HH24:MI:SS TZ')) else '' end;
  end if;
  select h.* into ended from howdah.job_history h where h.id = explain.job_id limit 1;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no job %s', explain.job_id), 'its history may have been dropped']);
  end if;
  return format('Job %s (%s) ', ended.id, ended.kind) || case ended.state
    when 'completed' then format('completed %s ago in attempt %s of %s%s.', howdah.humane(now - ended.finished_at), ended.attempt, ended.max_attempts,
      coalesce(', after ' || howdah.humane(ended.finished_at - ended.started_at), ''))
    when 'dead' then format('died %s ago in attempt %s of %s%s: %s. howdah retry %s makes a new job of it.', howdah.humane(now - ended.finished_at),
      ended.attempt, ended.max_attempts, case when ended.crashes > 0 then format(', having brought down %s workers', ended.crashes) else '' end,
      howdah.last_error(ended.errors), ended.id)
    else format('was cancelled %s ago by %s%s. howdah retry %s makes a new job of it.', howdah.humane(now - ended.finished_at), coalesce(ended.cancelled_by, 'somebody'),
      coalesce(': ' || ended.cancel_reason, ''), ended.id) end
    || coalesce((select format(' It was tried again as job %s.', max(a.id)) from (
      select j.id from howdah.jobs j where j.retried_from = ended.id and j.id > ended.id
      union all select h.id from howdah.job_history h where h.retried_from = ended.id and h.finished_at >= ended.finished_at) a having max(a.id) is not null), '');
end $$;

create function howdah.explain_running(job howdah.jobs, now timestamptz) returns text language sql stable as $$
select case when w.id is null then 'is held under a lease whose worker is gone; the next sweep takes it back, within five minutes.'
  else format('%s worker %s (%s), whose heartbeat is %s old%s.%s',
    case when job.started_at is not null then format('has been running for %s in attempt %s of %s, in the hands of', howdah.humane(now - job.started_at), job.attempt, job.max_attempts)
         else format('was claimed %s ago and waits for its start, or runs since less than a second, in the hands of', howdah.humane(now - job.claimed_at)) end,
    w.id, w.name, howdah.humane(now - w.beat_at),
    case when w.beat_at < now - w.ttl then ': it is dead, and any other worker takes the job back'
         when job.started_at < now - coalesce(job.timeout, k.timeout, interval '300 s') then format(': it has run past its timeout of %s', howdah.humane(coalesce(job.timeout, k.timeout, interval '300 s')))
         when w.draining then ': it drains, and gives the job back at its deadline' else '' end,
    coalesce((select format(' %s asked %s ago for it to be cancelled.', coalesce(s.by, 'Somebody'), howdah.humane(now - s.created_at))
              from howdah.signals s where s.job_id = job.id order by s.id limit 1), '')) end
from (select 1) one left join howdah.workers w on w.id = job.leased_by left join howdah.kinds k on k.name = job.kind $$;

create function howdah.explain_waiting(job howdah.jobs) returns text language sql stable as $$
select coalesce(
  (select format('waits for %s of the jobs that it depends on: %s.', count(*),
     string_agg(format('%s (%s)', d.depends_on, coalesce(d.outcome, j.state, 'ended')), ', ' order by d.depends_on) filter (where d.place <= 5)
       || case when count(*) > 5 then ', …' else '' end)
   from (select d.*, row_number() over (order by d.depends_on) as place from howdah.dependencies d where d.job_id = job.id) d
   left join howdah.jobs j on j.id = d.depends_on having count(*) > 0),
  (select format('waits for the end of its batch: %s of its jobs live, such as %s; %s have ended.',
     (select case when count(*) > 10000 then 'more than 10000' else count(*)::text end from (select from howdah.jobs j where j.batch = job.id limit 10001) few),
     (select format('%s (%s)', j.id, j.state) from howdah.jobs j where j.batch = job.id order by j.id limit 1),
     (select coalesce(sum(e.completed + e.dead + e.cancelled), 0) from howdah.batch_ends e where e.batch = job.id))
   from howdah.batches b where b.id = job.id),
  'waits, but nothing is on record for it to wait for: the next upkeep lets it go.') $$;

-- The first of these that is true keeps a ready job from running.
create function howdah.explain_ready(job howdah.jobs, now timestamptz) returns text language plpgsql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  paused howdah.queues;
  kind   howdah.kinds;
  able   text;
  ahead  bigint;
  since  text := format(case when job.gate is null then 'has been ready for %s' else 'has waited for %s' end, howdah.humane(greatest(now - job.ready_at, interval '0')));
begin
  select q.* into paused from howdah.queues q where q.name = job.queue and q.paused_at is not null;
  if found then
    return format('%s, but %s paused queue %s %s ago; howdah resume %s lets it run.', since, coalesce(paused.paused_by, 'somebody'), paused.name,
      howdah.humane(now - paused.paused_at), paused.name);
  end if;
  if not exists (select from howdah.workers w where job.kind = any (w.kinds) and w.beat_at > now - w.ttl and not w.draining) then
    select k.* into kind from howdah.kinds k where k.name = job.kind;
    return format('%s, but no living worker has a handler for %s; %s. Start a worker that has it.', since, job.kind,
      case when kind.name is null then 'the kind was never registered'
           when kind.last_worker is not null then format('%s had it last, %s ago', kind.last_worker, howdah.humane(now - kind.last_had_at))
           else 'it was registered, but no worker has had it since' end);
  end if;
  select string_agg(format('%s (%s)', w.id, w.name), ', ' order by w.id) into able from howdah.workers w
    where job.kind = any (w.kinds) and job.queue = any (w.queues) and w.beat_at > now - w.ttl and not w.draining;
  if able is null then
    return format('%s, but the living workers that have a handler for %s do not serve queue %s: they serve %s. Start one with --queues %s.', since, job.kind, job.queue,
      (select string_agg(distinct q.name, ', ') from howdah.workers w cross join unnest(w.queues) q(name)
       where job.kind = any (w.kinds) and w.beat_at > now - w.ttl and not w.draining), job.queue);
  end if;
  if job.suspect then
    select count(*) into ahead from (
      select from howdah.jobs j where j.queue = job.queue and j.due_at is null and j.suspect and ((10 - j.priority), j.id) < ((10 - job.priority), job.id) limit 10001) few;
    return format('%s; a worker died while it held this job, so it is a suspect%s: it runs alone, and %s before it in its queue.', since,
      case when job.crashes > 0 then format(' that has brought down %s', job.crashes) else '' end,
      case when ahead = 1 then 'one suspect is' else ahead || ' suspects are' end);
  end if;
  if job.gate is not null then
    return format('%s; %s It can be run by worker %s.', since, howdah.explain_limited(job, now), able);
  end if;
  select count(*) into ahead from (
    select from howdah.jobs j where j.queue = job.queue and j.due_at is null and not j.suspect and j.gate is null and j.lease is null
      and ((10 - j.priority), j.id) < ((10 - job.priority), job.id) limit 10001) few;
  return format('%s, and %s before it in queue %s (priority %s). It can be run by worker %s.', since,
    case when ahead = 0 then 'nothing stands' when ahead = 1 then 'one job stands' when ahead > 10000 then 'more than 10000 jobs stand' else ahead || ' jobs stand' end,
    job.queue, job.priority, able);
end $$;

-- Which of its keys a job waits for: the first that has no room, and who has it.
create function howdah.explain_limited(job howdah.jobs, now timestamptz) returns text language plpgsql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  name   text;
  rule   howdah.limits;
  held   bigint;
  ahead  bigint;
  first  record;
  filled timestamptz;
begin
  foreach name in array howdah.keys_of(job.limits, job.fifo_key) loop
    if starts_with(name, 'fifo:') then
      -- Whoever holds the key comes before all others, then the oldest that is ready.
      select j.id, j.kind, j.state, j.leased_by, j.due_at into first from howdah.jobs j
        where j.id = coalesce((select h.job_id from howdah.holds h where h.key = name limit 1),
          (select f.id from howdah.jobs f where f.fifo_key = job.fifo_key and f.due_at is null order by f.id limit 1));
      if first.id <> job.id then
        select count(*) into ahead from (
          select from howdah.jobs j where j.fifo_key = job.fifo_key and j.due_at is null and j.id < job.id and j.id <> first.id limit 10001) few;
        return format('it is behind job %s (%s, %s%s) of its FIFO key %s%s; howdah explain %s tells more.', first.id, first.kind, first.state,
          case when first.leased_by is not null then format(' by worker %s', first.leased_by)
               when first.due_at < 'infinity' then format(', due in %s', howdah.humane(first.due_at - now)) else '' end, job.fifo_key,
          case when ahead = 0 then '' when ahead > 10000 then ' and more than 10000 others' else format(' and %s more', ahead) end, first.id);
      end if;
      continue;
    end if;
    rule := howdah.limit_for(name);
    continue when rule.name is null;
    select count(*) into ahead from (
      select from howdah.jobs j where j.gate = name and j.queue = job.queue and j.due_at is null and not j.suspect
        and ((10 - j.priority), j.id) < ((10 - job.priority), job.id) limit 10001) few;
    select count(*) into held from howdah.holds h where h.key = name;
    if held >= rule.concurrency then
      return format('limit %s is reached: %s may run at once%s%s%s. howdah limit set %s --concurrency N changes it.', name,
        case when rule.concurrency = 0 then 'none' else rule.concurrency::text end,
        case when rule.name <> name then format(' (limit %s)', rule.name) else '' end,
        coalesce(', held by ' || (select string_agg(format('job %s (%s)', h.job_id, coalesce('worker ' || w.id || ' ' || w.name, 'no worker')), ', ' order by h.job_id)
          || case when held > 5 then ', …' else '' end
          from (select h.job_id from howdah.holds h where h.key = name order by h.job_id limit 5) h
          left join howdah.jobs j on j.id = h.job_id left join howdah.workers w on w.id = j.leased_by), ''),
        case when ahead = 0 then '' when ahead > 10000 then '; more than 10000 jobs stand before it there' else format('; %s before it there', ahead) end,
        quote_literal(rule.name));
    end if;
    if rule.rate is not null then
      select b.full_at - (rule.burst - 1) / rule.rate * interval '1 second' into filled from howdah.buckets b where b.key = name;
      if filled > now or ahead > 0 then
        return format('limit %s lets %s start in a second%s: the next token is free in %s, %s.', name, rule.rate,
          case when rule.name <> name then format(' (limit %s)', rule.name) else '' end, howdah.humane(greatest(coalesce(filled, now) - now, interval '0')),
          case when ahead = 0 then 'and it is the next' when ahead > 10000 then 'and more than 10000 jobs stand before it'
               else format('and %s before it, which takes %s', ahead, howdah.humane(ahead / rule.rate * interval '1 second')) end);
      end if;
    end if;
  end loop;
  return 'its limits have room, and it starts when a slot of its queue is free.';
end $$;

-- The kinds whose jobs have failed and wait to be tried again, among the first `count` that are due: how many (`cut`: there may be more), the error that most of
-- them met, and in how many seconds the next is tried.
create function howdah.failing(count int default 5000) returns table (kind text, jobs bigint, cut boolean, error text, next_in float8)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off as $$
with due as materialized (
  select j.kind, j.attempt, j.errors, j.due_at from howdah.jobs j where j.due_at < 'infinity' order by j.due_at limit failing.count)
select d.kind, count(*), (select count(*) from due) >= failing.count, mode() within group (order by howdah.last_error(d.errors)),
  greatest(extract(epoch from min(d.due_at) - clock_timestamp()), 0)::float8
from due d where d.attempt > 0 and d.errors is not null group by d.kind order by count(*) desc, d.kind $$;

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

-- Whether nothing of this subject, kind and queue (null: any) is queued or runs. What is scheduled for later is queued, and so
-- is an event that has not become a job yet.
create function howdah.is_idle(subject text default null, kind text default null, queue text default null) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
begin
  if subject is not null then          -- a statement of its own, which the index of subjects answers
    return not exists (select from howdah.jobs j where j.subject = is_idle.subject
                         and (is_idle.kind is null or j.kind = is_idle.kind) and (is_idle.queue is null or j.queue = is_idle.queue))
       and not exists (select from howdah.events e left join howdah.kinds k on k.name = e.kind where e.subject = is_idle.subject
                         and (is_idle.kind is null or e.kind = is_idle.kind) and (is_idle.queue is null or coalesce(e.queue, k.queue, 'default') = is_idle.queue));
  end if;
  return not exists (select from howdah.jobs j
                     where (is_idle.kind is null or j.kind = is_idle.kind) and (is_idle.queue is null or j.queue = is_idle.queue))
     and not exists (select from howdah.events e left join howdah.kinds k on k.name = e.kind
                     where (is_idle.kind is null or e.kind = is_idle.kind) and (is_idle.queue is null or coalesce(e.queue, k.queue, 'default') = is_idle.queue));
end $$;

-- How much lies where, without reading it all: what the gauges, the health of the queue and `howdah doctor` ask.

-- The lanes that hold anything: a lane is the jobs of one queue and one priority in the claim index, in the order of
-- claims. One descent of the index for each lane, however many jobs lie in it. A rank is 10 - priority.
create function howdah.lanes() returns table (queue text, rank int)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
with recursive lane as (
  (select j.queue, 10 - j.priority as rank from howdah.jobs j where j.due_at is null and not j.suspect and j.gate is null
   order by j.queue, (10 - j.priority), j.id limit 1)
  union all
  select next.* from lane cross join lateral (
    select j.queue, 10 - j.priority as rank from howdah.jobs j
    where j.due_at is null and not j.suspect and j.gate is null and (j.queue, (10 - j.priority)) > (lane.queue, lane.rank)
    order by j.queue, (10 - j.priority), j.id limit 1) next)
select l.queue, l.rank from lane l $$;

-- The jobs that stand first in the lanes: at most `count` of all lanes together, but 100 of each. Jobs in hand stand before those
-- that wait, unless no worker takes what stands before them. `cut`: the last one, and its lane may have more. Suspects have no lane
-- and come last. The row comparison, and no equality: with the rank pinned the primary key looks as good to the planner.
create function howdah.fronts(count int default 5000)
returns table (queue text, rank int, cut boolean, id bigint, kind text, ready_at timestamptz, lease bigint, leased_by bigint,
  claimed_at timestamptz, started_at timestamptz, timeout interval, suspect boolean)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off as $$
with lane as materialized (select l.queue, l.rank from howdah.lanes() l),
room as materialized (select greatest(fronts.count / greatest(count(*), 1), 100) as room from lane)
select lane.queue, lane.rank, first.place = (select room from room), first.id, first.kind, first.ready_at, first.lease, first.leased_by,
  first.claimed_at, first.started_at, first.timeout, false
from lane cross join lateral (
  select row_number() over () as place, j.* from (
    select j.id, j.kind, j.ready_at, j.lease, j.leased_by, j.claimed_at, j.started_at, j.timeout from howdah.jobs j
    where j.queue = lane.queue and j.due_at is null and not j.suspect and j.gate is null
      and ((10 - j.priority), j.id) > (lane.rank, 0) and (10 - j.priority) <= lane.rank
    order by (10 - j.priority), j.id
    limit (select room from room)) j) first
union all
(select j.queue, 10 - j.priority, false, j.id, j.kind, j.ready_at, j.lease, j.leased_by, j.claimed_at, j.started_at, j.timeout, true
 from howdah.jobs j where j.due_at is null and j.suspect order by j.queue, (10 - j.priority), j.id limit fronts.count) $$;

-- Live jobs by queue and state, and the age in seconds of the oldest ready one, at a price that does not grow with the table.
-- Exact while the lanes hold less than `count` jobs together, and while less than that are not due. Of more, the jobs are estimated
-- from `pages` pages at equal distances; the running ones and the oldest are then
-- those among the first of each lane, unless all of these are running.
-- Each page is read by its place, in a subquery of its own (`offset 0`): as a join the planner would read the table.
create function howdah.depth(count int default 5000, pages int default 500)
returns table (queue text, state text, jobs bigint, exact boolean, oldest float8)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp set jit = off set enable_seqscan = off as $$
with front as materialized (
  select f.queue, case when f.lease is null then 'ready' else 'running' end as state, f.ready_at, f.cut from howdah.fronts(depth.count) f),
later as materialized (
  (select j.queue, j.state from howdah.jobs j where j.due_at is not null order by j.due_at limit depth.count)
  union all
  (select j.queue, j.state from howdah.jobs j where j.due_at is null and not j.suspect and j.gate is not null limit depth.count)),
counted as (
  select f.queue, f.state, count(*) as jobs, extract(epoch from clock_timestamp() - min(f.ready_at))::float8 as oldest from front f group by 1, 2
  union all
  select l.queue, l.state, count(*), null from later l group by 1, 2),
cut as materialized (select f.queue, bool_and(f.state = 'running') as all_held from front f group by f.queue having bool_or(f.cut)),
late as materialized (select count(*) >= depth.count as cut from later),
page as materialized (
  select format('(%s,0)', p)::tid as first, format('(%s,0)', p + 1)::tid as past, count(*) over () as sampled, size.pages
  from (select pg_relation_size('howdah.jobs') / current_setting('block_size')::int as pages) size
  cross join lateral generate_series(0, size.pages - 1, greatest(size.pages / depth.pages, 1)) p
  where exists (select from cut) or (select late.cut from late)),
sample as (
  select one.queue, one.state, round(count(*) * min(page.pages)::numeric / min(page.sampled))::bigint as jobs, min(page.pages) = min(page.sampled) as exact
  from page cross join lateral (
    select j.queue, j.state, j.due_at from howdah.jobs j where j.ctid >= page.first and j.ctid < page.past offset 0) one
  where (one.state = 'ready' and one.queue in (select cut.queue from cut))
    or (one.state = 'running' and one.queue in (select cut.queue from cut where cut.all_held)) or ((one.due_at is not null or one.state = 'waiting') and (select late.cut from late))
  group by 1, 2)
select queue, state, greatest(c.jobs, s.jobs), coalesce(s.exact, true), case when c.oldest is not null then greatest(c.oldest, 0) end
from counted c full join sample s using (queue, state) $$;

-- Limits: how many jobs of a key may run at once, and how many may start in a second, exact over all workers; and FIFO keys.
--
-- A job that names limits, or has a fifo_key, stands in a line and not in the claim index: its row says at which key it waits
-- (`gate`), and jobs_gate is all the lines, each in claim order. So nobody who looks for other work passes over it.
-- Where there may be something to take is said by rows of howdah.openings, which are only ever appended, by whatever may have made room
-- or brought a job: no enqueue and no ack waits for another. howdah.claim_limited goes by them; it takes each key's lock without
-- waiting, counts what holds the key, and takes from the head of its line for as long as all of the job's keys have room. One of
-- them has none: the job goes to that one's line. A key without room leaves no opening behind, until a hold ends or a token is due.
--   lock order: openings (skip locked), keys (advisory, tried), jobs (skip locked). Nobody waits, so nobody waits in a circle.
--
-- A job in hand has a row of howdah.holds for each of its keys. It goes with the lease, in the same commit, whoever writes that: the
-- trigger sees to it. So the slots of a dead worker come back with the rescue, and never earlier. A FIFO key is held until the job has ended.

-- The limits that a job names, and those that hold for its kind and its queue.
create function howdah.with_standing(limits text[], kind text, queue text) returns text[] language sql stable as $$
select case when s.names is null then limits else coalesce(limits, '{}') || s.names end
from (select array_agg(k.name) as names from unnest(array['queue:' || queue, 'kind:' || kind]) k(name)
      where (howdah.limit_for(k.name)).name is not null and k.name <> all (coalesce(limits, '{}'))) s $$;

-- All keys of a job, the one that it is to wait at first in front.
create function howdah.keys_of(limits text[], fifo_key text) returns text[] language sql immutable parallel safe as $$
select case when fifo_key is null then limits else array['fifo:' || fifo_key] || coalesce(limits, '{}') end $$;

-- Says that jobs of a queue may be found at a key. A row of one's own transaction need not be doubled; another's may be gone before we commit.
create function howdah.open(key text, queue text) returns void language sql as $$
insert into howdah.openings (key, queue)
select open.key, open.queue where not exists (
  select from howdah.openings o where o.key = open.key and o.queue = open.queue and o.tokens = 0 and o.xmin = pg_current_xact_id()::xid) $$;

-- A new job with keys begins in the line of the first.
create function howdah.take_gate() returns trigger language plpgsql as $$
begin
  new.gate := case when new.fifo_key is null then new.limits[1] else 'fifo:' || new.fifo_key end;   -- howdah.keys_of, for many at once
  return new;
end $$;
create trigger take_gate before insert on howdah.jobs for each row when (new.limits is not null or new.fifo_key is not null)
  execute function howdah.take_gate();

-- Opens the line of a new job. Called for each of very many: one opening serves all that come in one transaction.
create function howdah.open_gate() returns trigger language plpgsql as $$
begin
  if not exists (select from howdah.openings o where o.key = new.gate and o.queue = new.queue and o.tokens = 0 and o.xmin = pg_current_xact_id()::xid) then
    insert into howdah.openings (key, queue) values (new.gate, new.queue);
    perform howdah.notify('howdah_control', 'limits');
  end if;
  return null;
end $$;

-- Keeps holds and openings true, whatever statement changes a job that is there. Jobs without keys pay a look at their row, and no call.
create function howdah.mind_gates() returns trigger language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  key   text;
  stirs boolean := false;
begin
  -- Whose lease has ended holds nothing any more, but for a FIFO key: that one until its own end.
  if tg_op = 'DELETE' or tg_op = 'UPDATE' and old.lease is not null and new.lease is null then
    for key in delete from howdah.holds h where h.job_id = old.id and (tg_op = 'DELETE' or not h.stays) returning h.key loop
      perform howdah.open(key, '');
      stirs := stirs or exists (select from howdah.jobs j where j.gate = key and j.due_at is null and not j.suspect)
        or exists (select from howdah.jobs j where j.due_at is null and j.suspect and j.gate is not null);
    end loop;
  end if;
  -- Those behind it in its FIFO line may go, if it stood there.
  if old.fifo_key is not null and old.due_at is null and (tg_op = 'DELETE' or new.due_at is not null) then
    perform howdah.open('fifo:' || old.fifo_key, '');
    stirs := stirs or exists (select from howdah.jobs j where j.fifo_key = old.fifo_key and j.due_at is null);
  end if;
  if tg_op <> 'DELETE' and new.gate is not null and new.due_at is null and new.lease is null
     and (old.gate is distinct from new.gate or old.due_at is not null or old.suspect <> new.suspect) then
    perform howdah.open(new.gate, new.queue);
    stirs := true;
  end if;
  if stirs then
    perform howdah.notify('howdah_control', 'limits');
    if exists (select from howdah.jobs j where j.due_at is null and j.suspect and j.gate is not null) then
      perform howdah.notify('howdah_control', 'suspects');
    end if;
  end if;
  return null;
end $$;
create trigger open_gate after insert on howdah.jobs for each row when (new.gate is not null) execute function howdah.open_gate();
create trigger mind_gate after update on howdah.jobs for each row when (new.limits is not null or new.fifo_key is not null)
  execute function howdah.mind_gates();
create trigger mind_old_gate after delete on howdah.jobs for each row when (old.limits is not null or old.fifo_key is not null)
  execute function howdah.mind_gates();

-- Whether a job may take all of its keys now. Takes them and gives null; or gives the key that has no room, and the time from which it
-- may have some, null if that depends on others; or gives '' if somebody else is at one of them this moment.
-- Of the key that is `sure` the caller has the lock, and has counted. The keys' locks are held to the end of the transaction, which must be near. What others took before is seen by the statements behind the lock.
create function howdah.acquire(job_id bigint, keys text[], sure text default null, out blocked text, out open_at timestamptz) language plpgsql as $$
#variable_conflict use_variable
declare
  moment timestamptz;
  name   text;
  rule   howdah.limits;
  rules  howdah.limits[] := '{}';
  fulls  timestamptz[] := '{}';
  filled   timestamptz;
begin
  foreach name in array keys loop
    if not howdah.try_lock(7316043, hashtext(name)) then
      blocked := '';
      return;
    end if;
  end loop;
  moment := clock_timestamp();
  foreach name in array keys loop
    filled := null;
    if starts_with(name, 'fifo:') then
      rule := null;
      if not exists (select from howdah.holds h where h.key = name and h.job_id = acquire.job_id) and (
           exists (select from howdah.holds h where h.key = name)
           or exists (select from howdah.jobs j where j.fifo_key = substr(name, 6) and j.due_at is null and j.id < job_id)) then
        blocked := name;
        return;
      end if;
    else
      rule := howdah.limit_for(name);
      if name is distinct from sure and (select count(*) from howdah.holds h where h.key = name) >= rule.concurrency then
        blocked := name;
        return;
      end if;
      if rule.rate is not null then
        -- Never further away than an empty bucket: the clock may have been set back, or the rate raised. Written down, or it would be empty
        -- again at the next look.
        update howdah.buckets b set full_at = moment + rule.burst / rule.rate * interval '1 second'
          where b.key = name and b.full_at > moment + rule.burst / rule.rate * interval '1 second';
        select b.full_at into filled from howdah.buckets b where b.key = name;
        filled := greatest(filled, moment);
        if filled > moment + (rule.burst - 1) / rule.rate * interval '1 second' then
          blocked := name;
          open_at := filled - (rule.burst - 1) / rule.rate * interval '1 second';
          return;
        end if;
      end if;
    end if;
    rules := rules || rule;
    fulls := fulls || filled;
  end loop;
  for place in 1 .. cardinality(keys) loop
    insert into howdah.holds (key, job_id, stays) values (keys[place], job_id, starts_with(keys[place], 'fifo:'))
      on conflict on constraint holds_pkey do nothing;
    if fulls[place] is not null then
      insert into howdah.buckets as b (key, full_at) values (keys[place], fulls[place] + 1 / (rules[place]).rate * interval '1 second')
        on conflict on constraint buckets_pkey do update set full_at = excluded.full_at;
    end if;
  end loop;
end $$;

-- Takes jobs that have keys, of each queue at most its room, all of whose keys have room, and those for which a line must be left that is full
-- go to that line. `next_in`, on every row, is in how many seconds to look again (null: when told), and `more` whether a queue
-- without room had more to give; with nothing taken there is one row whose id is null. For whoever can run the jobs at once: a
-- job in hand holds its keys. The locks of keys last as long as the transaction, and what was committed a moment ago must be seen.
create function howdah.claim_limited(worker bigint, lease bigint, kinds text[], queues text[], rooms int[])
returns table (id bigint, queue text, kind text, payload jsonb, priority smallint, attempt smallint, max_attempts smallint, timeout float8,
  waited float8, expires_in float8, subject text, headers jsonb, created_at timestamptz, crashes smallint, batch bigint, next_in float8, more boolean)
language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
  -- How many openings one call looks at, and how many jobs it sends to other lines: a claim stays short, however much waits.
  looks   constant int := 100;
  turns   int := 100;
  served  text[];
  free    int[];
  taken   bigint[] := '{}';
  busy    boolean := false;
  lanes   text[];
  lane    text;
  place   int;
  room    bigint;
  rank    int;
  past    bigint;
  head    bigint;
  spot    record;
  job     record;
  blocked text;
  until   timestamptz;
  gone    howdah.jobs;
  again   timestamptz;
  shut    boolean;
begin
  if current_setting('transaction_isolation') <> 'read committed' then
    perform howdah.refuse(array['JB002', 'howdah.claim_limited must see what has just been committed', 'call it at isolation level read committed']);
  end if;
  select array_agg(w.queue), array_agg(w.room) into served, free from unnest(claim_limited.queues, claim_limited.rooms) w(queue, room)
    where not exists (select from howdah.queues q where q.name = w.queue and q.paused_at is not null);

  for spot in
    select o.key, array_agg(o.id) as ids, array_agg(distinct o.queue) as queues, sum(o.tokens)::int as tokens
    from (select q.queue from unnest(served, free) q(queue, room) where q.room > 0 union all select '') q
    cross join lateral (
      select o.* from howdah.openings o where o.queue = q.queue and o.open_at <= clock_timestamp() order by o.open_at limit looks for update skip locked) o
    group by o.key order by min(o.open_at)
  loop
    if not howdah.try_lock(7316043, hashtext(spot.key)) then
      busy := true;
      continue;
    end if;
    delete from howdah.openings o where o.id = any (spot.ids);
    if spot.tokens > 0 then
      update howdah.buckets b set full_at = b.full_at - spot.tokens / l.rate * interval '1 second'
        from howdah.limit_for(spot.key) l where b.key = spot.key and l.rate is not null;
    end if;

    head := null;
    room := null;
    if starts_with(spot.key, 'fifo:') then
      head := coalesce((select h.job_id from howdah.holds h where h.key = spot.key limit 1),
        (select j.id from howdah.jobs j where j.fifo_key = substr(spot.key, 6) and j.due_at is null order by j.id limit 1));
      lanes := array(select j.queue from howdah.jobs j where j.id = head and j.gate = spot.key and j.due_at is null and not j.suspect);
    elsif '' = any (spot.queues) then
      lanes := howdah.lanes_at(spot.key);
    else
      lanes := spot.queues;
    end if;
    if head is null then
      -- Counted once, for all that it gives: nobody else can take meanwhile, and what is freed opens it again.
      select l.concurrency - (select count(*) from howdah.holds h where h.key = spot.key) into room from howdah.limit_for(spot.key) l
        where l.concurrency is not null;
    end if;

    shut := false;
    until := null;
    foreach lane in array lanes loop
      place := array_position(served, lane);
      again := null;
      rank := -1;
      past := 0;
      loop
        if place is null or free[place] <= 0 or turns <= 0 then
          again := clock_timestamp();               -- for whoever serves that queue, or has room again
          exit;
        end if;
        select j.id, j.limits, j.fifo_key, j.expires_at <= clock_timestamp() as expired, 10 - j.priority as rank into job from howdah.jobs j
          where j.gate = spot.key and j.queue = lane and j.due_at is null and not j.suspect and j.kind = any (claim_limited.kinds)
            and ((10 - j.priority), j.id) > (rank, past) and (head is null or j.id = head)
          order by (10 - j.priority), j.id limit 1 for update skip locked;
        if not found then
          if again is null and exists (select from howdah.jobs j where j.gate = spot.key and j.queue = lane and j.due_at is null and not j.suspect) then
            again := clock_timestamp() + interval '200 ms';      -- it is of a kind that others have, or somebody holds it
          end if;
          exit;
        end if;
        if room <= 0 then
          shut := true;
          until := null;
          exit;
        end if;
        rank := job.rank;
        past := job.id;
        if job.expired then                         -- it takes neither slot nor token to say so
          delete from howdah.jobs j where j.id = job.id returning j.* into gone;
          perform howdah.bury_cancelled(gone, 'howdah', 'it expired before it was started');
          perform howdah.note_ended(array[gone.id], array['cancelled'], array[gone.batch], true);
          turns := turns - 1;
          continue;
        end if;
        select a.blocked, a.open_at into blocked, until from howdah.acquire(job.id, howdah.keys_of(job.limits, job.fifo_key), spot.key) a;
        if blocked is null then
          update howdah.jobs j set lease = claim_limited.lease, leased_by = claim_limited.worker, attempt = j.attempt + 1,
            claimed_at = greatest(clock_timestamp(), j.created_at), gate = null where j.id = job.id;
          taken := taken || job.id;
          free[place] := free[place] - 1;
          room := room - 1;
        elsif blocked = '' then
          again := clock_timestamp() + interval '5 ms';
        elsif blocked = spot.key then
          shut := true;
          exit;
        else
          update howdah.jobs j set gate = blocked where j.id = job.id;
          turns := turns - 1;
        end if;
      end loop;
      exit when shut;
      if again is not null then
        -- What others have opened here and we can see stays until we are done: we have the lock.
        insert into howdah.openings (key, queue, open_at)
        select spot.key, lane, again where not exists (select from howdah.openings o where o.key = spot.key and o.queue = lane and o.open_at <= again);
      end if;
    end loop;
    if shut and until is not null then
      insert into howdah.openings (key, open_at)
      select spot.key, until where not exists (select from howdah.openings o where o.key = spot.key and o.queue = '' and o.open_at <= until);
    end if;
  end loop;

  select extract(epoch from min(o.open_at) - clock_timestamp())::float8 into next_in
    from (select q.queue from unnest(served, free) q(queue, room) where q.room > 0 union all select '') q
    cross join lateral (select o.open_at from howdah.openings o where o.queue = q.queue order by o.open_at limit 1) o;
  if busy then
    next_in := greatest(next_in, 0.003);
  elsif next_in < 0 then
    next_in := 0;
  end if;
  more := exists (select from unnest(served, free) q(queue, room) join howdah.openings o on o.queue = q.queue where q.room <= 0);
  return query
  select j.id, j.queue, j.kind, j.payload, j.priority, j.attempt, j.max_attempts, extract(epoch from j.timeout)::float8,
    greatest(extract(epoch from j.claimed_at - j.ready_at), 0)::float8, extract(epoch from j.expires_at - j.claimed_at)::float8,
    j.subject, j.headers, j.created_at, j.crashes, j.batch, claim_limited.next_in, claim_limited.more
  from (select 1) one left join howdah.jobs j on j.id = any (taken);
end $$;

-- The queues in which something stands at a key: a descent of the index for each.
create function howdah.lanes_at(gate text) returns text[] language sql stable
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
with recursive lane as (
  (select j.queue from howdah.jobs j where j.gate = lanes_at.gate and j.due_at is null and not j.suspect order by j.queue limit 1)
  union all
  select next.queue from lane cross join lateral (
    select j.queue from howdah.jobs j where j.gate = lanes_at.gate and j.due_at is null and not j.suspect and j.queue > lane.queue
    order by j.queue limit 1) next)
select array(select l.queue from lane l) $$;

-- Gives back the tokens of jobs that were given back without having been started.
create function howdah.return_tokens(ids bigint[]) returns void language sql
set jit = off set enable_seqscan = off set enable_nestloop = on set enable_hashjoin = off set enable_mergejoin = off set random_page_cost = 0 set cpu_tuple_cost = 0 as $$
insert into howdah.openings (key, tokens)
select k.key, count(*) from howdah.jobs j cross join unnest(j.limits) k(key)
where j.id = any (return_tokens.ids) and (howdah.limit_for(k.key)).rate is not null group by k.key $$;

-- Which of these kinds and queues a limit holds for.
create function howdah.standing_among(kinds text[], queues text[], out limited_kinds text[], out limited_queues text[]) language sql stable as $$
select array(select k.name from unnest(kinds) k(name) where (howdah.limit_for('kind:' || k.name)).name is not null),
  array(select q.name from unnest(queues) q(name) where (howdah.limit_for('queue:' || q.name)).name is not null) $$;

-- Sends jobs that stand in the claim index to the lines of what holds for their kind or queue: those that were not known to have a limit when
-- they came. Looks where a claim looks, under the claim's plan.
create function howdah.send_to_gates(queues text[], limited_queues text[], limited_kinds text[], count int default 1000) returns void language sql as $$
with late as materialized (
  select one.id from unnest(queues) q(queue) cross join lateral (
    select j.id from howdah.jobs j
    where j.queue = q.queue and j.due_at is null and not j.suspect and j.gate is null and ((10 - j.priority), j.id) > (-1, 0)
      and j.lease is null and (q.queue = any (limited_queues) or j.kind = any (limited_kinds))
    order by (10 - j.priority), j.id limit send_to_gates.count for update skip locked) one)
update howdah.jobs j set limits = k.keys, gate = (howdah.keys_of(k.keys, j.fifo_key))[1]
from late cross join lateral (select h.id, howdah.with_standing(h.limits, h.kind, h.queue) as keys from howdah.jobs h where h.id = late.id) k
where j.id = k.id $$;

-- Has the limits of a kind or a queue hold for what is queued already, as far as nobody holds it this moment: claims find the rest.
create function howdah.apply_standing(prefix text, whole boolean) returns void language sql as $$
update howdah.kinds k set limited = n.limited
from (select k.name, exists (select from howdah.limits l where l.name like 'queue:%') or (howdah.limit_for('kind:' || k.name)).name is not null as limited
      from howdah.kinds k order by k.name for update) n
where k.name = n.name and k.limited <> n.limited;
update howdah.settings s set limited = n.limited from (select exists (select from howdah.limits l where l.standing) as limited) n where s.limited <> n.limited;
with late as materialized (
  select j.id from howdah.jobs j
  where j.lease is null and case when whole then apply_standing.prefix in ('kind:' || j.kind, 'queue:' || j.queue)
    else starts_with('kind:' || j.kind, apply_standing.prefix) or starts_with('queue:' || j.queue, apply_standing.prefix) end
  order by j.id for update skip locked)
update howdah.jobs j set limits = k.keys, gate = case when j.gate is not null then j.gate else (howdah.keys_of(k.keys, j.fifo_key))[1] end
from late cross join lateral (select h.id, h.limits, howdah.with_standing(h.limits, h.kind, h.queue) as keys from howdah.jobs h where h.id = late.id) k
where j.id = k.id and k.keys is distinct from k.limits $$;

-- Opens every line whose key begins so, or one: something about its limit has changed.
create function howdah.open_lines(prefix text, whole boolean) returns void language sql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
with recursive line as (
  (select j.gate from howdah.jobs j where j.gate >= prefix and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1)
  union all
  select next.gate from line cross join lateral (
    select j.gate from howdah.jobs j where j.gate > line.gate and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) next
  where starts_with(line.gate, prefix) and not whole)
insert into howdah.openings (key) select l.gate from line l where starts_with(l.gate, prefix) and (l.gate = prefix or not whole);
select howdah.notify('howdah_control', 'limits') $$;

-- Sets what holds for a key or a pattern (`chat:*`), from the commit on: how many may run at once, how many may start in a second
-- and how many of these at one moment. Null: any number. What runs goes on; nothing new starts until the key is below the new limit.
create function howdah.set_limit(name text, concurrency int default null, rate float8 default null, burst int default null)
returns void language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
begin
  if name is null or length(name) not between 1 and 200 or name ~ '[[:cntrl:]]' or strpos(left(name, -1), '*') > 0 or starts_with(name, 'fifo:') then
    perform howdah.refuse(array['JB002', format('name is %L', left(name, 200)), '1 to 200 characters, a * only as the last of them']);
  elsif concurrency is null and rate is null then
    perform howdah.refuse(array['JB002', 'neither concurrency nor rate is given', 'howdah.remove_limit takes a limit away']);
  elsif concurrency < 0 then
    perform howdah.refuse(array['JB002', format('concurrency is %s', concurrency), '0 (nothing starts) or more']);
  elsif not (rate > 0 and rate < 'infinity') then
    perform howdah.refuse(array['JB002', format('rate is %s', rate), 'starts per second, more than none']);
  elsif burst < 1 or burst is not null and rate is null then
    perform howdah.refuse(array['JB002', format('burst is %s', burst), 'at least 1, and with a rate']);
  end if;
  insert into howdah.limits as l (name, concurrency, rate, burst)
  values (name, concurrency, rate, coalesce(burst, greatest(ceil(rate / 50), 1)::int))
  on conflict on constraint limits_pkey do update set concurrency = excluded.concurrency, rate = excluded.rate, burst = excluded.burst, set_at = excluded.set_at;
  if name ~ '^(kind|queue):' then
    perform howdah.apply_standing(rtrim(name, '*'), name not like '%*');
  end if;
  perform howdah.open_lines(rtrim(name, '*'), name not like '%*');
end $$;

-- Takes a limit away, and tells whether there was one.
create function howdah.remove_limit(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
begin
  delete from howdah.limits l where l.name = remove_limit.name;
  if not found then return false; end if;
  if name ~ '^(kind|queue):' then
    perform howdah.apply_standing(rtrim(name, '*'), name not like '%*');
  end if;
  perform howdah.open_lines(rtrim(name, '*'), name not like '%*');
  return true;
end $$;

-- Finds what no opening leads to though it might start, and forgets what means nothing any more; tells how many lines it opened. The safety net:
-- reads a few index entries for each key that jobs wait at.
create function howdah.sweep_limits() returns int language plpgsql
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
declare
  opened int;
begin
  with recursive line as (
    (select j.gate from howdah.jobs j where j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1)
    union all
    select next.gate from line cross join lateral (
      select j.gate from howdah.jobs j where j.gate > line.gate and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) next)
  insert into howdah.openings (key) select l.gate from line l
  where not exists (select from howdah.openings o where o.key = l.gate) and not exists (select from howdah.holds h where h.key = l.gate)
    and (howdah.limit_for(l.gate)).concurrency is distinct from 0;
  get diagnostics opened = row_count;
  -- No token is further away than that, unless the clock was set back.
  with ahead as materialized (
    select o.id from howdah.openings o where o.open_at > clock_timestamp() + interval '1 second'
      and o.open_at > clock_timestamp() + 2 / coalesce((howdah.limit_for(o.key)).rate, 2) * interval '1 second' order by o.id for update skip locked)
  update howdah.openings o set open_at = clock_timestamp() from ahead where o.id = ahead.id;
  if found then opened := opened + 1; end if;
  delete from howdah.buckets b where b.key in (
    select o.key from howdah.buckets o where o.full_at < clock_timestamp() - interval '1 minute' order by o.key limit 1000 for update skip locked)
    and howdah.try_lock(7316043, hashtext(b.key));
  if opened > 0 then
    perform howdah.notify('howdah_control', 'limits');
  end if;
  return opened;
end $$;

-- How full the limits are: how many run under each, how many wait in its lines and for how long the oldest of these has, in seconds. At most `count`
-- jobs of a line and 200 lines of a pattern are counted, which `cut` tells: the price does not grow with what waits.
create function howdah.limit_lines(count int default 1000)
returns table (name text, concurrency int, rate float8, burst int, set_at timestamptz, keys bigint, running bigint, waiting bigint, cut boolean, oldest float8)
language sql stable security definer set search_path = pg_catalog, howdah, pg_temp
set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off as $$
with recursive line as (
  select l.name, first.gate, 1 as place from howdah.limits l cross join lateral (
    select j.gate from howdah.jobs j where j.gate >= rtrim(l.name, '*') and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) first
  union all
  select line.name, next.gate, line.place + 1 from line cross join lateral (
    select j.gate from howdah.jobs j where j.gate > line.gate and j.gate is not null and j.due_at is null and not j.suspect order by j.gate limit 1) next
  where right(line.name, 1) = '*' and starts_with(line.gate, left(line.name, -1)) and line.place < 200),
mine as materialized (
  select line.* from line where case when right(line.name, 1) = '*' then (howdah.limit_for(line.gate)).name = line.name else line.gate = line.name end),
waiting as materialized (
  select mine.name, sum(w.jobs)::bigint as jobs, bool_or(w.jobs >= limit_lines.count or mine.place >= 200) as cut, min(w.ready_at) as ready_at
  from mine cross join lateral (
    select count(*) as jobs, min(few.ready_at) as ready_at from (
      select j.ready_at from howdah.jobs j where j.gate = mine.gate and j.due_at is null and not j.suspect
      order by j.gate, j.queue, (10 - j.priority), j.id limit limit_lines.count) few) w
  group by mine.name),
held as materialized (
  select (howdah.limit_for(h.key)).name, count(distinct h.key) as keys, count(*) as running from howdah.holds h group by 1)
select l.name, l.concurrency, l.rate, l.burst, l.set_at, coalesce(h.keys, 0), coalesce(h.running, 0), coalesce(w.jobs, 0), coalesce(w.cut, false),
  greatest(extract(epoch from clock_timestamp() - w.ready_at), 0)::float8
from howdah.limits l left join held h on h.name = l.name left join waiting w on w.name = l.name
order by l.name $$;

-- Schedules: jobs that are made by themselves, at the slots of a cron expression in a time zone.
--
-- The database knows what is due, decides who may fire it and makes the jobs; when slots are is computed by the workers
-- (schedules.py), because PostgreSQL reads no cron expressions. A worker reads a row, computes the slots that have come since
-- done_until, and hands them to howdah.fire_schedule with the row's version. That fires only if the version is still the one that was
-- read, and makes the jobs and moves done_until in one commit: so each slot is dealt with exactly once, whoever dies when.

create table howdah.schedules (
  name        text        primary key check (length(name) between 1 and 200 and name !~ '[[:cntrl:]]'),
  kind        text        not null,
  payload     jsonb       not null default '{}' check (jsonb_typeof(payload) = 'object'),
  options     jsonb       not null default '{}',           -- further arguments of enqueue, by name
  cron        text        not null,
  time_zone   text        not null default 'UTC',
  missed      text        not null default 'one'   check (missed in ('skip', 'one', 'all')),     -- what slots become that nobody saw in time
  overlap     text        not null default 'allow' check (overlap in ('allow', 'skip')),         -- skip: no second job while one lives
  jitter      interval    not null default '0'     check (jitter >= '0'),
  declared    boolean     not null default false,          -- by a handler of the kind of its name; else made by hand
  version     bigint      not null default 0,              -- moves with every change, and is what firing is fenced by
  created_at  timestamptz not null default clock_timestamp(),
  done_until  timestamptz not null default clock_timestamp(),   -- slots up to here are fired or passed over; only moves forward
  next_at     timestamptz,                                 -- the first slot after that; null: no worker has computed it yet
  paused_at   timestamptz,
  paused_by   text,
  problem     text,                                        -- why it does not fire; no slot is given up for it
  problem_at  timestamptz,                                 -- since when; it is tried again every minute
  last_slot   timestamptz,
  last_at     timestamptz,                                 -- when last_slot was fired
  last_job    bigint,
  fired       bigint      not null default 0,              -- jobs made
  missed_slots bigint     not null default 0,              -- slots that came while nobody looked and got no job, as `missed` says
  overlapped  bigint      not null default 0               -- slots that got no job because one lived
) with (fillfactor = 50);

-- What everybody may read of schedules. `overdue`: for how long it ought to have fired and has not.
create view howdah.schedule_status as
select s.name, s.kind, howdah.masked(s.kind, s.payload) as payload, s.options, s.cron, s.time_zone, s.missed, s.overlap, s.jitter, s.declared,
       s.created_at, s.next_at, s.paused_at, s.paused_by, s.problem, s.last_slot, s.last_at, s.last_job, s.fired, s.missed_slots, s.overlapped,
       case when s.paused_at is null and coalesce(s.next_at, s.done_until) < statement_timestamp()
            then statement_timestamp() - coalesce(s.next_at, s.done_until) end as overdue
from howdah.schedules s;

-- Makes a schedule, or changes the one of this name, and tells whether it is new. Its slots begin now; a change of anything but expression
-- and zone leaves them where they are. The workers compute when they are, at once, and note as `problem` what they cannot read.
create function howdah.schedule(name text, cron text, kind text, payload jsonb default '{}', time_zone text default 'UTC',
  missed text default 'one', overlap text default 'allow', jitter interval default '0', queue text default null, priority int default null,
  max_attempts int default null, timeout interval default null, subject text default null, limits text[] default null,
  fifo_key text default null, headers jsonb default null)
returns boolean language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
#variable_conflict use_variable
declare
  problem text[];
  known   howdah.kinds;
  given   jsonb;
  made    boolean;
begin
  problem := case
    when name is null or length(name) not between 1 and 200 or name ~ '[[:cntrl:]]'
      then array['JB002', format('name is %L', left(name, 200)), 'one to 200 characters, none of them a control character']
    when cron is null or array_length(regexp_split_to_array(trim(cron), '\s+'), 1) not in (5, 6)
      then array['JB002', format('cron is %L', left(cron, 200)), 'minute, hour, day of month, month and day of week, such as ''0 3 * * *''']
    when not exists (select from pg_timezone_names z where z.name = time_zone)
      then array['JB002', format('time_zone is %L', left(time_zone, 200)), 'a name of pg_timezone_names, such as Europe/Berlin or UTC']
    when missed is null or missed not in ('skip', 'one', 'all')
      then array['JB002', format('missed is %L', missed), 'skip, one or all']
    when overlap is null or overlap not in ('allow', 'skip')
      then array['JB002', format('overlap is %L', overlap), 'allow or skip']
    when jitter is null or jitter < interval '0' or jitter > interval '1 day'
      then array['JB002', format('jitter is %s', coalesce(jitter::text, 'null')), 'from nothing to a day']
    else howdah.argument_problem(kind, payload, queue, priority, null, null, max_attempts, timeout, null, 'skip', subject, null, null,
                                 limits, fifo_key, null, headers) end;
  if problem is not null then perform howdah.refuse(problem); end if;
  select k.* into known from howdah.kinds k where k.name = kind;
  if not found then
    if (select s.strict_kinds from howdah.settings s) then
      perform howdah.refuse(array['JB004', format('kind %L was never registered', kind), 'run howdah register, or start a worker that has it']);
    end if;
    raise notice 'howdah: kind % was never registered', quote_literal(kind);
  elsif howdah.field_problem(known.fields, payload, interval '10 minutes') is not null then
    perform howdah.refuse(array['JB003', format('%s: %s', kind, howdah.field_problem(known.fields, payload, interval '10 minutes')), 'see the schema in howdah.kinds']);
  end if;
  given := jsonb_strip_nulls(jsonb_build_object('queue', queue, 'priority', priority, 'max_attempts', max_attempts, 'timeout', timeout,
    'subject', subject, 'limits', limits, 'fifo_key', fifo_key, 'headers', headers));

  insert into howdah.schedules as s (name, kind, payload, options, cron, time_zone, missed, overlap, jitter)
  values (name, kind, payload, given, trim(cron), time_zone, missed, overlap, jitter)
  on conflict on constraint schedules_pkey do update set
    kind = excluded.kind, payload = excluded.payload, options = excluded.options, cron = excluded.cron, time_zone = excluded.time_zone,
    missed = excluded.missed, overlap = excluded.overlap, jitter = excluded.jitter, version = s.version + 1, problem = null, problem_at = null,
    done_until = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.done_until else greatest(s.done_until, clock_timestamp()) end,
    next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end
  where not s.declared
  returning s.version = 0 into made;
  if made is null then
    perform howdah.refuse(array['JB007', format('schedule %L is declared by a handler', name), 'choose another name, or change the declaration']);
  end if;
  perform howdah.notify('howdah_control', 'due');
  return made;
end $$;

-- Takes a schedule away; its jobs stay. One that is declared stays as long as a living worker has its handler.
create function howdah.unschedule(name text) returns void
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  mine howdah.schedules;
begin
  select s.* into mine from howdah.schedules s where s.name = unschedule.name;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no schedule %L', unschedule.name), 'howdah schedule list names them']);
  elsif mine.declared and exists (select from howdah.workers w where mine.kind = any (w.kinds) and w.beat_at > clock_timestamp() - w.ttl) then
    perform howdah.refuse(array['JB007', format('schedule %L is declared by a handler that a living worker has', unschedule.name),
      'take it out of the declaration, or pause it']);
  end if;
  delete from howdah.schedules s where s.name = unschedule.name;
end $$;

-- Lets a schedule fire no more, whatever restarts; tells whether it was not paused before. Its jobs run on.
create function howdah.pause_schedule(name text, by text default null) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  was timestamptz;
begin
  select s.paused_at into was from howdah.schedules s where s.name = pause_schedule.name for update;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no schedule %L', pause_schedule.name), 'howdah schedule list names them']);
  end if;
  update howdah.schedules s set paused_at = clock_timestamp(), paused_by = pause_schedule.by, version = s.version + 1
    where s.name = pause_schedule.name and s.paused_at is null;
  return was is null;
end $$;

-- Lets a schedule fire again, from the next slot on: those that came while it was paused are not missed. Tells whether it was paused.
create function howdah.resume_schedule(name text) returns boolean
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  was timestamptz;
begin
  select s.paused_at into was from howdah.schedules s where s.name = resume_schedule.name for update;
  if not found then
    perform howdah.refuse(array['JB007', format('there is no schedule %L', resume_schedule.name), 'howdah schedule list names them']);
  end if;
  update howdah.schedules s set paused_at = null, paused_by = null, version = s.version + 1, problem = null, problem_at = null, next_at = null,
    done_until = greatest(s.done_until, clock_timestamp())
    where s.name = resume_schedule.name and s.paused_at is not null;
  perform howdah.notify('howdah_control', 'due');
  return was is not null;
end $$;

-- Keeps the schedules that handlers declare, after howdah.register has taken the same kinds: {"schedule": {"cron", "payload", "time_zone",
-- "missed", "overlap", "jitter" (seconds)}} in a kind's object; a kind without one has none any more. Of two revisions the newer one's
-- word holds. What was not changed goes on from where it was, and a pause stays. Where one was made by hand under the kind's name that one
-- goes on and the declared one is not used; gives those names.
create function howdah.declare_schedules(kinds jsonb, revision bigint) returns text[]
language plpgsql security definer set search_path = pg_catalog, howdah, pg_temp as $$
declare
  taken text[];
begin
  if exists (select from howdah.schedules s where s.declared) or kinds @? '$[*].schedule.cron' then
    with given as (
      select g.name, g.schedule from jsonb_to_recordset(declare_schedules.kinds) as g(name text, schedule jsonb)
      join howdah.kinds k on k.name = g.name and k.revision = declare_schedules.revision)
    delete from howdah.schedules s where s.declared and s.name in (select g.name from given g where g.schedule ->> 'cron' is null);
    with given as (
      select g.name, d.* from jsonb_to_recordset(declare_schedules.kinds) as g(name text, schedule jsonb)
      join howdah.kinds k on k.name = g.name and k.revision = declare_schedules.revision
      cross join lateral jsonb_to_record(g.schedule) as d(cron text, payload jsonb, time_zone text, missed text, overlap text, jitter float8)
      where g.schedule ->> 'cron' is not null),
    kept as (
      insert into howdah.schedules as s (name, kind, payload, cron, time_zone, missed, overlap, jitter, declared)
      select g.name, g.name, coalesce(g.payload, '{}'), g.cron, coalesce(g.time_zone, 'UTC'), coalesce(g.missed, 'one'), coalesce(g.overlap, 'allow'),
             coalesce(g.jitter, 0) * interval '1 second', true
      from given g order by g.name
      on conflict (name) do update set
        payload = excluded.payload, cron = excluded.cron, time_zone = excluded.time_zone, missed = excluded.missed, overlap = excluded.overlap,
        jitter = excluded.jitter, version = s.version + 1, problem = null, problem_at = null,
        done_until = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.done_until else greatest(s.done_until, clock_timestamp()) end,
        next_at = case when (s.cron, s.time_zone) = (excluded.cron, excluded.time_zone) then s.next_at end
      where s.declared and (s.payload, s.cron, s.time_zone, s.missed, s.overlap, s.jitter)
        is distinct from (excluded.payload, excluded.cron, excluded.time_zone, excluded.missed, excluded.overlap, excluded.jitter)
      returning 1)
    select array_agg(g.name) into taken from given g join howdah.schedules s on s.name = g.name and not s.declared;
    perform howdah.notify('howdah_control', 'due');
  end if;
  return coalesce(taken, '{}');
end $$;

-- Fires a schedule as it was read under `version`: a job for each of `slots`, `delays` seconds after now, and everything up to `until` is dealt
-- with. Gives how many jobs were made, how many slots were passed over because a job lives, and what the database refused; no row:
-- somebody else changed or fired it meanwhile, or holds it this moment. What is refused stays due, and nothing is lost.
create function howdah.fire_schedule(name text, version bigint, slots timestamptz[], delays float8[], missed bigint, until timestamptz, next_at timestamptz)
returns table (made int, overlapped int, refusal text) language plpgsql as $$
#variable_conflict use_column
declare
  mine howdah.schedules;
  key  text := 'schedule:' || fire_schedule.name;
  last bigint;
begin
  -- Passed over if it is locked: somebody's transaction that changes it may stay open for long.
  select s.* into mine from howdah.schedules s
    where s.name = fire_schedule.name and s.version = fire_schedule.version and s.paused_at is null for update skip locked;
  if not found then return; end if;
  made := 0;
  overlapped := 0;
  begin
    if mine.overlap = 'skip' and slots <> '{}' then
      overlapped := cardinality(slots);
      -- Asked first: an insert would wait for whoever is about to end that job.
      if exists (select from howdah.jobs j where j.unique_key = key) or exists (select from howdah.jobs j where j.id = mine.last_job) then
        slots := '{}';
      else
        slots := slots[overlapped:overlapped];
        delays := delays[overlapped:overlapped];
      end if;
    end if;
    if slots <> '{}' then
      select count(*), max(e.id) into made, last
      from howdah.enqueue_many((
        select jsonb_agg(mine.options || jsonb_build_object('kind', mine.kind, 'payload', mine.payload,
            'headers', coalesce(mine.options -> 'headers', '{}') || jsonb_build_object('schedule', jsonb_build_object('name', mine.name,
              'slot', to_char(g.slot at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'))))
          || case when g.delay > 0 then jsonb_build_object('delay', format('%s seconds', g.delay)) else '{}' end
          || case when mine.overlap = 'skip' then jsonb_build_object('unique_key', key) else '{}' end order by g.slot)
        from unnest(slots, delays) g(slot, delay))) e
      where e.created;
    end if;
    overlapped := case when mine.overlap = 'skip' then overlapped - made else 0 end;
  exception when others then
    if sqlstate !~ '^(JB|22|23)' then raise; end if;
    refusal := regexp_replace(sqlerrm, '^howdah: (job \d+: )?', '');
    made := 0;
    overlapped := 0;
  end;
  if refusal is not null then
    update howdah.schedules s set problem = refusal, problem_at = clock_timestamp() where s.name = mine.name;
  else
    update howdah.schedules s set version = s.version + 1, problem = null, problem_at = null,
      done_until = greatest(s.done_until, fire_schedule.until), next_at = fire_schedule.next_at,
      last_slot = case when made > 0 then slots[cardinality(slots)] else s.last_slot end, last_at = case when made > 0 then clock_timestamp() else s.last_at end,
      last_job = coalesce(last, s.last_job), fired = s.fired + made, missed_slots = s.missed_slots + fire_schedule.missed, overlapped = s.overlapped + fire_schedule.overlapped
    where s.name = mine.name;
  end if;
  return next;
end $$;
