"""A run's config: its fields and their meaning, files, variants and overrides."""
