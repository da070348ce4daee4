"""``python -m slicescan``."""

import sys

from slicescan.cli import main

sys.exit(main())
