-- Asks the engine to tell the waiter $2 of the end of each of the jobs $1, for $3 seconds from now.
select howdah.watch(w.id, $2, $3) from unnest($1::bigint[]) w(id) order by w.id
