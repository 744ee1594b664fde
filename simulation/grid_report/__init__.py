"""The report of a grid: records, statistics, tables, figures, page."""
