"""Evaluation: policies play cases, cases become records, records become rates, and runs are compared."""
