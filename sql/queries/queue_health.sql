-- Jobs that hang, among the first of each lane, where jobs in hand stand: leased by a worker whose beat is older than its ttl by more than
-- $1 seconds, or running past their timeout by more than $2 seconds; and how many are ready.
select (select count(*) from howdah.fronts() f left join howdah.workers w on w.id = f.leased_by left join howdah.kinds k on k.name = f.kind
        where f.lease is not null and (w.id is null or w.beat_at < clock_timestamp() - w.ttl - $1::float8 * interval '1 second'
          or f.started_at < clock_timestamp() - coalesce(f.timeout, k.timeout, interval '300 s') - $2::float8 * interval '1 second')) as stuck,
       (select coalesce(sum(d.jobs), 0)::bigint from howdah.depth() d where d.state = 'ready') as pending
