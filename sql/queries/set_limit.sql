-- Sets limit $1: $2 may run at once, $3 may start in a second and $4 of these at one moment; null: any number.
select howdah.set_limit($1, $2, $3, $4)
