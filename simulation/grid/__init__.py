"""Many runs from one file: plan, cells, workers, results."""
