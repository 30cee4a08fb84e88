"""Training: the stages of a run, their time budget and progress display, and a small stand-in model."""
