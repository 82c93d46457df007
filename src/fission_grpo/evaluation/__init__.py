"""Evaluation: a policy runs cases, cases become records, records become metrics, and runs are compared."""
