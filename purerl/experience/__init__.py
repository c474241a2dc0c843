"""Transitions, and all that is made of them: buffers, returns, rewards, statistics, metrics."""
