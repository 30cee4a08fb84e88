"""Running all notebooks, the report of a run, and the committed form of the notebooks."""
