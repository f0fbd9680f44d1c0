"""`python -m llamackpt`, the same as the command `llamackpt`."""

import sys

from .cli import main

sys.exit(main())
