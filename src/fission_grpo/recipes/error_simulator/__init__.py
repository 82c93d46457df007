"""The Error Simulator: collect failures, label them, train a model on them, and measure its feedback."""
