-- Lets go the jobs that have nothing left to wait for and that no ack has let go, at most $1 at once; tells how many it looked at.
select howdah.settle($1)
