-- Stops the claims of queue $1 in the name of $2.
select howdah.pause($1, $2)
