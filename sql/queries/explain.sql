-- Says why job $1 is not running, and what would change that.
select howdah.explain($1) as sentence
