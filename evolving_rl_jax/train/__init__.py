"""Training: the state, the compiled update, the optimizer and checkpoints."""
