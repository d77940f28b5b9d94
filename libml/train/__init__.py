"""The training loop, its state and checkpoints, and the contract of methods."""
