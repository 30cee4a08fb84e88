"""Chatting with a model: replies, sessions, feedback, the terminal and web interfaces, and the bundled model."""
