"""Ahead of time: does a configuration compile for a TPU slice or GPUs, and does it fit their memory?

`check.check` compiles a run's programs for devices that are not there, `report.render` is what a
person reads, `chips` the slices, `gpus` the cards, `estimate` the arithmetic.  Memory is the
compiler's own analysis.
Imports what a run is made of, but opens no run and needs no device; only `cli` imports from here.
"""
