-- Gives the names and results of the steps that were kept of job $1, and one row without a name if there is none; no row: it is not held
-- under lease $2 any more.
select name, result from howdah.steps_of($1, $2)
