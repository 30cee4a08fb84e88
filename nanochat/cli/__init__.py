"""The commands: what can be typed, and what each does."""
