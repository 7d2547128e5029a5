-- Takes back the jobs of dead workers other than $4, at most $1 of each: a row for every dead worker, or one whose worker is null. The caller expects
-- the clock to show $2, and has seen it run evenly for $3 seconds. `next_in` is in how many seconds the next worker can be dead, `clock` what the
-- clock shows.
select r.worker, r.name, r.rescued, r.buried, r.beat_age, n.next_in, n.clock
from (select extract(epoch from min(w.beat_at + w.ttl) - clock_timestamp())::float8 as next_in, clock_timestamp() as clock
      from howdah.workers w where w.beat_at >= clock_timestamp() - w.ttl) n
left join howdah.rescue($1, $2, $3, $4) r on true
