"""What a model's outputs mean: the loss, the metric states and the metrics of each task."""
