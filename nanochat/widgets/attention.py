"""The attention explorer: the attention weights of every head of every layer, for a text of your own."""

from __future__ import annotations

from typing import Any

import ipywidgets as widgets
import numpy as np
import torch
from torch import Tensor

from ..config import UserError
from ..figures import plots
from ..figures.style import INK, new_figure, plain, png
from ..model import GPT, Attention, attend
from ..tokenizer import Tokenizer
from . import fallback
from .markup import escape
from .tokens import visible

_TOKENS = 24  # tokens of the text that are shown: more could not be read in a grid


@torch.inference_mode()
def attention_weights(model: GPT, ids: list[int]) -> Tensor:
    """The attention weights (n_layer, n_head, T, T) from each position (row) to each position (column) of one text.

    Raises UserError if there are no ids, or more than the model's context holds.
    """
    if not ids:
        raise UserError("there is nothing to look at; type some text")
    found: list[Tensor] = []
    # with unit vectors as values, the output of attention is the weights themselves
    unit = torch.eye(len(ids), device=model.wte.weight.device)

    def keep(attention: Attention, args: tuple[Any, ...]) -> None:
        q, k, _ = attention.heads(args[0], args[1])
        found.append(attend(q, k, unit.expand(1, q.size(1), -1, -1).to(q.dtype), None)[0])

    was_training = model.training
    model.eval()
    hooks = [block.attn.register_forward_pre_hook(keep) for block in model.h]
    try:
        model.trunk(torch.tensor([ids], device=unit.device))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    return torch.stack(found).float().cpu()


def _read(model: GPT, tok: Tokenizer, text: str) -> tuple[Tensor, list[str]]:
    """(attention weights, tokens as text) for the beginning of `text`, after the <|endoftext|> that begins each document."""
    ids = [tok.eot, *tok.encode(text)][: min(_TOKENS, model.config.block_size)]
    return attention_weights(model, ids), [visible(tok.token_bytes(token)) for token in ids]


def _masked(weights: Tensor) -> np.ndarray:
    """The weights with NaN for future positions, which the figures show as masked."""
    return weights.masked_fill(torch.ones(weights.shape[-2:]).triu(1).bool(), float("nan")).numpy()


def habits(weights: Tensor) -> Tensor:
    """(n_layer, n_head, 3): each head's mean weight on the position itself, the previous one, and the first one.

    The mean is over the positions where these three differ. For two tokens or fewer all values are 0.
    """
    late = weights[..., 2:, :]
    if not late.size(-2):
        return torch.zeros(*weights.shape[:2], 3)
    shares = late.diagonal(2, -2, -1), late.diagonal(1, -2, -1)[..., : late.size(-2)], late[..., 0]
    return torch.stack([share.mean(-1) for share in shares], dim=-1)


def grid(model: GPT, tok: Tokenizer, text: str) -> plots.Plot:
    """A small attention matrix for each head: layers from top to bottom, heads from left to right."""
    weights, names = _read(model, tok, text)
    layers, heads = weights.shape[:2]
    figure = new_figure(1.7 * heads + 0.4, 1.75 * layers + 0.3)
    axes = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            ax = axes[layer, head]
            ax.imshow(_masked(weights[layer, head]), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            ax.patch.set(facecolor="#EEEEEE")
            ax.set_title(f"layer {layer}, head {head}", fontsize=8, color=INK)
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    targets = ("on the token itself", "on the one before", "on the first token")
    best = habits(weights).flatten(0, 1).max(dim=0)
    strongest = (
        f"{best.values[i]:.0%} {target} (layer {best.indices[i] // heads}, head {best.indices[i] % heads})"
        for i, target in enumerate(targets)
    )
    return figure, (
        f"Attention of {layers * heads} heads to {len(names)} tokens; the most that a head has on average: "
        f"{', '.join(strongest)}."
    )


def detail(model: GPT, tok: Tokenizer, text: str, layer: int = 0, head: int = 0) -> plots.Plot:
    """The attention matrix of one head: each row shows what its token attends to."""
    weights, names = _read(model, tok, text)
    title = f"Layer {layer}, head {head}"
    return plots.heatmap(_masked(weights[layer, head]), names, names, title, "takes from", "token")


def detail_html(model: GPT, tok: Tokenizer, text: str, layer: int = 0, head: int = 0) -> str:
    """The attention matrix of one head as an HTML table, in percent."""
    weights, names = _read(model, tok, text)
    head_row = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for i, row in enumerate(weights[layer, head].tolist()):
        cells = (
            f'<td style="background:rgba(0,114,178,{0.6 * w:.2f})">{w:.0%}</td>' if j <= i else "<td></td>"
            for j, w in enumerate(row)
        )
        rows.append(f"<tr><th>{escape(names[i])}</th>{''.join(cells)}</tr>")
    return (
        f"<p><b>Layer {layer}, head {head}</b>: each row says where its token takes from.</p>"
        f"<table><tr><th></th>{head_row}</tr>{''.join(rows)}</table>"
    )


def explorer(model: GPT, tok: Tokenizer, text: str) -> widgets.Widget:
    """A widget with a text to edit, all heads in a grid, and one head in detail, chosen by two menus."""
    typed = widgets.Text(text, description="Text", continuous_update=False, layout={"width": "98%"})
    layer = widgets.Dropdown(options=range(model.config.n_layer), description="Layer")
    head = widgets.Dropdown(options=range(model.config.n_head), description="Head")
    overview, one = widgets.HTML(), widgets.HTML()
    fallback.follow(lambda: _image(grid(model, tok, typed.value)), overview, [typed])
    fallback.follow(lambda: _image(detail(model, tok, typed.value, layer.value, head.value)), one, [typed, layer, head])
    return widgets.VBox([typed, overview, widgets.HBox([layer, head]), one])


def _image(plot: plots.Plot) -> str:
    import base64

    figure, sentence = plot
    source = base64.b64encode(png(figure, dpi=110)).decode()
    return (
        f'<img alt="{escape(sentence)}" src="data:image/png;base64,{source}" style="max-width:100%">'
        f"<p>{escape(plain(sentence))}</p>"
    )


def explore(model: GPT, tok: Tokenizer, text: str) -> None:
    """Display the explorer; a saved notebook shows a table of one head of the last layer in its place."""
    layer = model.config.n_layer - 1
    html = detail_html(model, tok, text, layer)
    fallback.show(explorer(model, tok, text), html, f"Attention of layer {layer}, head 0 to {text!r}.")
