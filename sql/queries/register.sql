-- Registers the kinds $1 (an array of objects) of code revision $2.
select howdah.register($1, $2)
