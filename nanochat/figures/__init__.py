"""Every plot of the lessons, in one style."""
