"""Data preparation, from files to token ids: file readers, data sets, conversations, and batches for training."""
