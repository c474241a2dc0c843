"""Actors, critics, distributions and the default networks."""
