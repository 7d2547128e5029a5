-- Pauses queue $1 by $2.
select howdah.pause($1, $2)
