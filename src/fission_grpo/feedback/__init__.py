"""Sources of feedback on failures, the leak guard, and the request that asks them in order."""
