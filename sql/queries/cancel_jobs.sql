-- Cancels the jobs $1 by $2 for the reason $3, in id order as everybody who locks several jobs, and gives each with its state after that.
select a.id, howdah.cancel(a.id, $2, $3) as state from (select id from unnest($1::bigint[]) id order by id) a
