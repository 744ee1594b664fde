"""Joining a federation: the hospital's key, its request, and the bundle from the coordinator."""
