"""`python -m nanochat` is the console script `nanochat`."""

from .cli.parser import main

raise SystemExit(main())
