"""`python -m lit_posttrain` is `lit-posttrain`."""

import sys

from lit_posttrain.cli.main import main

sys.exit(main())
