"""Importers: other people's recordings into the episode store."""
