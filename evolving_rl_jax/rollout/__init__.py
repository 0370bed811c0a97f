"""Rollouts: prompts, episodes, the four stages of an iteration, and batching into a TokenBatch."""
