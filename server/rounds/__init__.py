"""The round loop: what it asks of sites, and what it checks of their answers."""
