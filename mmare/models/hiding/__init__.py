"""Modalities hidden: in training, to explain a prediction, and in a graph of other programs."""
