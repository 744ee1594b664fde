"""Strategies as pure functions from updates to the next model."""
