-- Cancels job $1 by $2 for the reason $3 and gives its state after that.
select howdah.cancel($1, $2, $3) as state
