"""Learning curves, comparisons and views of sweeps."""
