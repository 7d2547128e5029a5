-- Makes one job of all visible events of each of at most $1 ripe keys; tells how many, and when the next is ripe.
select made, next_in from howdah.coalesce_events($1)
