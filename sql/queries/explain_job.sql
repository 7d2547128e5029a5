-- Why job $1 is where it is, and what would change that.
select howdah.explain($1)
