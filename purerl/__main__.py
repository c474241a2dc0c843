"""`python -m purerl` is the `purerl` command."""

from purerl.cli import command

command()
