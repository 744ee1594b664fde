"""The model library: missing-aware models, their metrics, and what travels between sites and server."""
