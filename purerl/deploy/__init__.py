"""Policies outside of training: files, StableHLO, Gymnasium in both directions, pictures."""
