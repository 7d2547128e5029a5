-- Lets schedule $1 fire no more; $2 is who wants it. Tells whether it was not paused before.
select howdah.pause_schedule($1, $2)
