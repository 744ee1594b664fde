"""The coordinator's local web application: runs, sites, the queue, and admission."""
