"""Other people's tool-calling data as step tasks: one small file per layout, what they share in `dialogues`."""
