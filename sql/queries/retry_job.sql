-- Retries the ended job $1 and gives its new id.
select howdah.retry($1) as new_id
