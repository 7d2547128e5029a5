-- Makes at most $1 due jobs claimable; tells how many, and in how many seconds the next is due (null: none).
select promoted, next_in from howdah.promote($1)
