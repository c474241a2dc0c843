"""Seeds times hyperparameters, over devices."""
