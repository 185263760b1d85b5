"""`python -m prdp`, the same as `prdp`."""

import sys

from prdp.cli import main

sys.exit(main())
