"""What any program on a machine needs: files, signals, supervised processes, metric names; no model."""
