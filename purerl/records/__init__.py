"""Typed frozen records, errors, files and folders."""
