"""Whole slides to tiles."""
