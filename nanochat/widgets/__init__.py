"""What can be clicked: thin views over the package, for notebooks."""

from .playground import playground

__all__ = ["playground"]
