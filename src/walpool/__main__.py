"""`python -m walpool`: the same as the `walpool` command."""

import sys

from walpool.cli.main import run

sys.exit(run())
