"""The validation loss of a model in nats per token and in bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from ..model import GPT
from ..tokenizer import Tokenizer
from ..trainer import as_tensors


def mean_loss(model: GPT, batches: Iterator[tuple[np.ndarray, ...]], tokenizer: Tokenizer) -> dict[str, float]:
    """`val_loss` (nats per target token) and `val_bpb` (bits per byte of the targets' text) over batches.

    Each batch is (x, y) or (x, y, docs), integers (B, T); targets of -1 do not count.
    """
    device = next(model.parameters()).device
    lengths = tokenizer.byte_lengths()
    nats, count, n_bytes = 0.0, 0, 0
    for arrays in batches:
        targets = arrays[1][arrays[1] >= 0]
        batch = (tensor.to(device) for tensor in as_tensors(arrays))
        nats += model(*batch, reduction="sum").item()
        count += targets.size
        n_bytes += int(lengths[targets].sum())
    return {"val_loss": nats / max(count, 1), "val_bpb": nats / math.log(2) / max(n_bytes, 1)}
