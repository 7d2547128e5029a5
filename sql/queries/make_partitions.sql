-- Makes the history's days up to $1 days ahead; tells how many days from today are ready.
select howdah.make_partitions($1)
