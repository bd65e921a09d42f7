"""The progress model: per-view encoders, masked fusion, a causal trunk, and heads."""
