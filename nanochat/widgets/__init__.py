"""Interactive widgets for the notebooks: the playground, the training monitor and several explorers."""

from .playground import playground

__all__ = ["playground"]
