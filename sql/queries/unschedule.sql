-- Takes schedule $1 away.
select howdah.unschedule($1)
