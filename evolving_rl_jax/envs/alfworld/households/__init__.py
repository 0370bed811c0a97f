"""Generated household games."""
