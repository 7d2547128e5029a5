"""The demonstration: a crowd likes and unlikes, two daemons count, one of them is killed, and no count is wrong."""
