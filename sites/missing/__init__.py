"""Deliberate missingness: mechanisms, masks, and the amputation of site tables."""
