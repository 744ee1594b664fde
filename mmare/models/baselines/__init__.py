"""Models that MMARE is compared with, one idea a file."""
