"""`fit`: chunks, checkpoints, a folder for each run, reports, sinks and the console."""
