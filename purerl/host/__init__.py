"""All that is not pure: files, clocks, screens."""
