"""Howdah beside its peers: the same work, on the same server, one after the other. `./dev peers`."""
