"""Evaluation of models: scoring, baselines, and the report card."""
