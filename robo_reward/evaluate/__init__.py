"""Evaluation of reward models: metrics on a store, comparisons, and the HTML report."""
