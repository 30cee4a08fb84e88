"""`python -m nanochat` is the console script `nanochat`."""

from .cli import main

raise SystemExit(main())
