"""Task files: any supported format becomes rows, an environment and a reward."""
