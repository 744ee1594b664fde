"""One run: what was asked for, its folder, its result."""
