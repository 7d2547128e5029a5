-- Lets schedule $1 fire again; tells whether it was paused.
select howdah.resume_schedule($1)
