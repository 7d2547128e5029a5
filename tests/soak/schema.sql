-- The soak's own books, beside the schema of the product.

create schema soak;

-- Which jobs were committed: written in the transaction that enqueued them.
create table soak.batches (
  id      bigint primary key,
  at      timestamptz    not null default clock_timestamp(),
  jobs    int            not null,
  ids     int8multirange not null,
  checked boolean        not null default false
);
create index batches_unchecked on soak.batches (id) where not checked;

-- What transactional handlers wrote.
create table soak.effects (job_id bigint not null);

-- Every committed claim of the jobs of the sample.
create table soak.claims (
  seq    bigint generated always as identity primary key,
  job_id bigint not null,
  lease  bigint not null
);
create index claims_job on soak.claims (job_id);

create function soak.watch_claims() returns trigger language plpgsql as $$
begin
  insert into soak.claims (job_id, lease) values (new.id, new.lease);
  return null;
end $$;
create trigger watch_claims after update on howdah.jobs for each row
  when (new.id % 100 = 0 and new.lease is not null and new.lease is distinct from old.lease)
  execute function soak.watch_claims();

-- Enqueues a batch, once however often it is asked for: an answer may be lost. Gives how many jobs it made.
create function soak.enqueue(batch bigint, jobs jsonb) returns int language plpgsql as $$
declare
  made int;
begin
  select b.jobs into made from soak.batches b where b.id = batch;
  if found then return made; end if;
  insert into soak.batches (id, jobs, ids)
  select batch, count(*), coalesce(range_agg(int8range(e.id, e.id + 1)), '{}') from howdah.enqueue_many(enqueue.jobs) e where e.created
  returning soak.batches.jobs into made;
  return made;
end $$;

select howdah.set_limit('soak', 20, null, null);
