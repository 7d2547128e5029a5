-- A worker's row: name $1, version $2, ttl in seconds $3, queues $4, kinds $5. Gives its id, new for every life.
insert into howdah.workers (name, version, ttl, queues, kinds)
values ($1, $2, $3::float8 * interval '1 second', $4, $5)
returning id
