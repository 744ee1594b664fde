"""What a run leaves on the disk: journal, checkpoints, model."""
