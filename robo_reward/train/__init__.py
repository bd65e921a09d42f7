"""Training a progress model from demonstrations."""
