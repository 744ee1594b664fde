"""One machine, many sites: prepare federations, run them, compare the results."""
