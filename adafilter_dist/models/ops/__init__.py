"""Ways to compute a gated layer."""
