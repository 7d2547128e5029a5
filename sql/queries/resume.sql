-- Lets queue $1 be claimed again.
select howdah.resume($1)
