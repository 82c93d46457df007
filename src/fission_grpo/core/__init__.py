"""Types, the chat format, tool schemas, rewards, JSON and files. Knows no environment and no model."""
