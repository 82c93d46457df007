"""New multi-turn tasks over BFCL's environments."""
