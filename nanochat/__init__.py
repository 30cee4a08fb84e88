"""nanochat: train your own small ChatGPT, from raw text to a chat with feedback, on a laptop.

Importing the package is quick: nothing heavy is loaded, no network and no GPU are touched.
"""

__version__ = "0.1.0"
