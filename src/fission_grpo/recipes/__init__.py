"""Recipes around the library: the Error Simulator, the starter policy and tasks generated over BFCL."""
