-- Cancels every live job of subject $1 in the name of $2 for the reason $3, and gives their number.
select howdah.cancel_subject($1, $2, $3) as jobs
