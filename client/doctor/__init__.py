"""``mmare-site check --network``: find what would keep this machine from a run, with remedies."""
