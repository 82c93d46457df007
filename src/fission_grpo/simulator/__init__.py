"""The Error Simulator: a model that writes diagnoses. Its prompt, data, training, quality, and the ways to ask it."""
