-- Registers the kinds $1 (an array of objects) of code revision $2, with the schedules that they declare; gives the names of those that are
-- not used, because somebody made a schedule of that name by hand.
select howdah.register($1, $2), howdah.declare_schedules($1, $2) as taken
