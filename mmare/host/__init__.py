"""What any program on a machine needs: files, locks, signals, supervised processes, metric names."""
