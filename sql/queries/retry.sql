-- Makes a new job of the ended job $1, and gives its id.
select howdah.retry($1) as id
