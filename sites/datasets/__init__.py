"""Data sets, one per file: from a source folder to a federation folder."""
