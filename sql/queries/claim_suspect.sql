-- Takes one suspect for worker $1 under lease $2, of kinds $3 and queues $4. Its start must be written before its handler is called.
select * from howdah.claim_suspect($1, $2, $3, $4)
