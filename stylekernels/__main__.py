"""``python -m stylekernels``: the command line of :mod:`stylekernels.cli.main`."""

import sys

from stylekernels.cli.main import main

sys.exit(main())
