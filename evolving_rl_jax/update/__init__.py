"""The update: jax only."""
