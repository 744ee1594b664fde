"""``mmare-site check --network``: what stands between this machine and a run, and what to do about it."""
