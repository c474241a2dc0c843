"""Devices and their collectives, and what makes one of them faster."""
