"""BFCL's eight multi-turn environments, their official judge, and tasks over them.

Needs bfcl-eval without its dependencies: `pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock`.
Nothing outside this package imports it before it is asked for.
"""

INSTALL = "pip install --no-deps bfcl-eval==2026.3.23 mpmath==1.3.0 filelock"
"""How to install what this package needs."""
