-- Takes limit $1 away, and tells whether there was one.
select howdah.remove_limit($1) as removed
