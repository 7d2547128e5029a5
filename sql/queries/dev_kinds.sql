-- The kinds of worker $1 with their JSON schemas, in order of name.
select k.name, k.schema from howdah.kinds k where k.name = any (select unnest(w.kinds) from howdah.workers w where w.id = $1) order by k.name
