"""How fast nanochat is, as ratios measured in one run: `nanochat bench`. Begin reading with suite.py."""
