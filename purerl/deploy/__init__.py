"""Policies outside training: files, StableHLO, Gymnasium in both directions, pictures."""
