"""Tasks and data sets: what is played, in which split and in which order."""
