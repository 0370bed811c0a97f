"""TFDS builder of compacted Mind2Web tasks."""
