"""Metrics as mergeable sums, and their intervals."""
