"""A run: its recipe, its directory, its records, and what it ran on."""
