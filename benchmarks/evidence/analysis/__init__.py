"""The analysis of the evidence: raw results in; numbers, tables and pictures out. `analyse.py` is its command."""
