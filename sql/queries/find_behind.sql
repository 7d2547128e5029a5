-- Finds ready jobs of kinds $1 that lie behind in queues $2, of each at most $3. Lines $4…$6 say how far (see howdah.find_behind). Takes nothing.
select * from howdah.find_behind($1, $2, $3, $4, $5, $6)
