"""python -m shoal.node is the same as the shoal command."""

import sys

from shoal.node.cli import main

sys.exit(main())
