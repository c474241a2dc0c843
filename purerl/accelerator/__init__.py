"""Devices and their collectives, and the measured tricks that make a device faster."""
