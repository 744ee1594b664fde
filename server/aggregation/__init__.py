"""Strategies as pure functions: how updates become the next model."""
