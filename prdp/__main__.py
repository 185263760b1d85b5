"""`python -m prdp`, the same as `prdp`."""

import sys

if not sys.flags.safe_path:
    # Python looks into the current folder first: a `queue.py` there would be taken for the real one from here on.
    sys.path.append(sys.path.pop(0))

from prdp.cli import main

if __name__ == "__main__":
    sys.exit(main())
