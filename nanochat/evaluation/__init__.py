"""How good a model is: scoring, baselines, and the report card with its text."""
