"""Somebody else's policy with our skills."""
