"""Gaps made on purpose: who loses what, by which mechanism, and the taking away."""
