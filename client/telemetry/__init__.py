"""What a site worker tells its own hospital: counts, times and sizes; of small groups nothing."""
