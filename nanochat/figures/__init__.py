"""The plots of the notebooks, in a common style."""
