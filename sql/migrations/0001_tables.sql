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
