"""The config, the loop, the rollout, evaluation, `make_train` and policies."""
