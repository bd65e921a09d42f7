"""Demonstrations: the episode store, importers and annotation."""
