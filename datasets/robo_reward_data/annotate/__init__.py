"""Stages of stored episodes: found automatically, or marked by hand on a local web page."""
