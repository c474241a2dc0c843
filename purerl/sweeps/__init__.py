"""Sweeps: seeds x hyperparameters, over devices."""
