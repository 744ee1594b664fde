"""What a site holds: its scans, their embeddings in the cache, and a study's tensors."""
