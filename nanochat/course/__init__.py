"""Running every notebook, the report of a run, and the notebooks that are committed."""
