"""BFCL v4 cases run and judged as the official evaluation does."""
