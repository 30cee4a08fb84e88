"""Talking to a model: a reply, a chat, its feedback, the terminal, the page, and the model in the box."""
