"""The stages of a run: what fits into the time there is, how far it is, and a small stand-in for a model."""
