"""What a hospital keeps of what it released: audit log, runs, moments, the ledger of its privacy budget."""
