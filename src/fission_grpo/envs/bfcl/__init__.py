"""BFCL's eight multi-turn environments, their official judge, and tasks in them.

They need bfcl-eval, so that no module outside this package imports these at the top.
"""
