"""Encoders that a site adds as a folder: ``encoder.toml``, weights, a probe and what comes out of it."""
