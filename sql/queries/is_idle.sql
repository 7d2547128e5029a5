-- Whether nothing of subject $1, kind $2 and queue $3 is queued or runs; null means any.
select howdah.is_idle($1, $2, $3) as idle
