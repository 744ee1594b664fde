"""Frozen encoders: from what a site holds of a modality to one embedding per patient."""
