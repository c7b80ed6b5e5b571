"""`python -m optative` is the same as `optative`."""

from __future__ import annotations

import sys

from optative.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
