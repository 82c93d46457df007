"""What users may want of each class: fresh scenarios, and intents that try themselves out in a live world."""
