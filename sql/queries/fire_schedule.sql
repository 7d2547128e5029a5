-- Fires schedule $1 as it was read under version $2: jobs for the slots $3, so many seconds ($4) from now; $5 slots are given up, all up to $6
-- are dealt with, and the next one is $7. No row: it is somebody else's.
select made, overlapped, refusal from howdah.fire_schedule($1, $2, $3, $4, $5, $6, $7)
