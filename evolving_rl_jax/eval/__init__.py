"""Evaluation: fixed panels of games, the statistics of their outcomes, and the report of a run."""
