"""The benchmark, `nanochat bench`: the speed of nanochat, mostly relative to other programs. Start with suite.py."""
