"""`nucleus selftest`: what a pod under a person's own policy keeps in, on their own machine, tried."""
