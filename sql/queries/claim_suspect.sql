-- Takes one suspect for worker $1 under lease $2, of kinds $3 and queues $4, its start written at once.
select * from howdah.claim_suspect($1, $2, $3, $4)
