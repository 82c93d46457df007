"""Run the command line as `python -m fission_grpo.cli`."""

import sys

from fission_grpo.cli.main import main

sys.exit(main())
