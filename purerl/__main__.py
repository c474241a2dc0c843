"""`python -m purerl` is the `purerl` command."""

import sys

from purerl.host.cli import main

sys.exit(main())
