"""``python -m txmail`` is the command ``txmail``."""

import sys

from .cli import main

sys.exit(main())
