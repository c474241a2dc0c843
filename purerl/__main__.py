"""`python -m purerl` is the `purerl` command."""

import sys

from purerl.cli import main

sys.exit(main())
