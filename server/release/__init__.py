"""From a finished run to the model package that hospitals install."""
