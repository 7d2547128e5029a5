-- Lets go the jobs that have nothing left to wait for and that no ack has let go, about $1 at once; tells how many it found, and in how
-- many seconds to look again, if there is reason to.
select seen, next_in from howdah.settle($1)
