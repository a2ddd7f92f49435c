"""`python -m visglm` is `visglm`."""

import sys

from .cli import main

sys.exit(main())
