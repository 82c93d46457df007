"""BFCL's eight multi-turn environments, their official judge, and tasks in them.

They need bfcl-eval, installed without its dependencies by INSTALL. No module outside this package imports these at
the top, so that everything else works without it.
"""

INSTALL = "pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock"
"""How to install what this package needs."""
