"""One run: request, folder and result."""
