"""``python -m stylekernels``: the command line of :mod:`stylekernels.cli`."""

import sys

from stylekernels.cli import main

sys.exit(main())
