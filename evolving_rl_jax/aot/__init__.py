"""Does a configuration compile and fit a TPU slice."""
