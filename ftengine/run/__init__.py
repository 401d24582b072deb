"""A run: its recipe, directory, records and environment."""
