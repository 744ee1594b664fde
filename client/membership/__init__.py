"""How a hospital joins: its key, its request, the bundle that comes back."""
