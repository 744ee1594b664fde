"""``mmare-sim prepare``: federation folders from data sets."""
