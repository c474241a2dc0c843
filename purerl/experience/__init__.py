"""Transitions, buffers, returns, rewarders, running statistics and metrics."""
