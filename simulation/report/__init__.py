"""The report of a run: results, figures, page."""
