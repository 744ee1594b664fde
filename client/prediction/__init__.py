"""A released model on a hospital's own patients: predictions, what they rest on, how far to trust them."""
