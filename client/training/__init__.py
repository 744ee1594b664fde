"""The service that answers a round: training, evaluation, kept state."""
