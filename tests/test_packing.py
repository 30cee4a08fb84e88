"""Packed rows of whole conversations: the loss mask, and that no token is lost, repeated or mixed up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from talks import ASSISTANT, CONTEXT, END, EOT, TOK, USER, one_line

from nanochat.config import UserError
from nanochat.data import packing, questions
from nanochat.data.packing import MarkIds, Stream


def test_the_mask_is_pinned_token_by_token_over_several_conversations():
    ids = [EOT, CONTEXT, 1, USER, 2, 3, ASSISTANT, 4, 5, END, USER, 6, ASSISTANT, 7, END]
    mask = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]
    stream = np.array(ids + ids + [EOT, EOT], dtype=np.uint16)
    assert questions.answer_mask(stream, TOK).astype(int).tolist() == [*mask, *mask, 0, 0]


def test_the_mask_of_rows_does_not_leak_from_one_row_to_the_next():
    rows = np.array([[EOT, USER, 1, ASSISTANT, 2], [3, END, EOT, USER, 4]])
    assert questions.answer_mask(rows, TOK).astype(int).tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 0, 0]]


def test_an_empty_answer_still_teaches_to_stop():
    assert questions.answer_mask(np.array([EOT, USER, 1, ASSISTANT, END]), TOK).tolist() == [False] * 4 + [True]


def test_an_answer_without_end_stops_at_the_next_mark():
    ids = np.array([EOT, USER, 1, ASSISTANT, 2, EOT, 3, USER, 4])
    assert np.flatnonzero(questions.answer_mask(ids, TOK)).tolist() == [4]


def _mask_by_state(ids: list[int]) -> list[bool]:
    """The same mask, computed one token at a time."""
    inside, mask = False, []
    for token in ids:
        mask.append(inside and (token < EOT or token == END))
        inside = token == ASSISTANT or (inside and token < EOT)
    return mask


@given(st.lists(st.sampled_from((0, 1, EOT, CONTEXT, USER, ASSISTANT, END)), max_size=40))
def test_the_mask_agrees_with_reading_one_token_after_the_other(ids):
    assert questions.answer_mask(np.array(ids, dtype=np.int64), TOK).tolist() == _mask_by_state(ids)


MARKS = MarkIds(0, 1, 2, 3, 4)


def stream_of(shapes: list[tuple[int, int]]) -> Stream:
    """Conversations of (question, answer) tokens; every plain token, from 10 up, occurs once."""
    plain = iter(range(10, 10**9))
    ids, starts = [], [0]
    for asked, answered in shapes:
        ids += [0, 2, *(next(plain) for _ in range(asked)), 3, *(next(plain) for _ in range(answered)), 4]
        starts.append(len(ids))
    stream = Stream.of(np.array(ids), MARKS)
    assert stream.starts.tolist() == starts
    return stream


def data_of(train: Stream, val: Stream | None = None) -> questions.QAData:
    return questions.QAData(Path(), {}, train, val or train)


def test_a_packed_row_is_pinned_token_by_token():
    stream = stream_of([(1, 2), (1, 1)])  # 10 | 11 12 and 13 | 14: seven and six tokens
    x, y, docs = packing.fill(stream, [np.array([0, 1]), np.array([1])], block_size=14)
    pad = [0] * 2
    assert x.tolist() == [
        [0, 2, 10, 3, 11, 12, 4, 0, 2, 13, 3, 14, 4, *pad[:1]],
        [0, 2, 13, 3, 14, 4, *[0] * 8],
    ]
    assert y.tolist() == [
        [-1, -1, -1, 11, 12, 4, -1, -1, -1, -1, 14, 4, -1, -1],
        [-1, -1, -1, 14, 4, *[-1] * 9],
    ]
    assert docs.tolist() == [[0] * 7 + [1] * 6 + [2], [0] * 6 + [1] * 8]
    assert x.dtype == y.dtype == docs.dtype == np.int64


def test_a_conversation_of_block_size_plus_one_tokens_fits_with_its_end_as_last_target():
    x, y, docs = questions.qa_batch(data_of(stream_of([(2, 3)])), seed=0, step=0, batch_size=1, block_size=8)
    assert x.tolist() == [[0, 2, 10, 11, 3, 12, 13, 14]]
    assert y.tolist() == [[-1, -1, -1, -1, 12, 13, 14, 4]]
    assert not docs.any()


def test_a_model_too_short_for_the_prepared_conversations_is_refused():
    with pytest.raises(UserError) as error:
        questions.qa_batch(data_of(stream_of([(2, 3)])), seed=0, step=0, batch_size=1, block_size=7)
    one_line(error, "9 tokens", "block_size 7", "prepare")


shapes_lists = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=60)


def epoch_of(data: questions.QAData, seed: int, epoch: int, block_size: int) -> list[tuple[np.ndarray, ...]]:
    rows = len(packing.packed(data.train, block_size, seed).starts) - 1
    steps = range(epoch * rows, (epoch + 1) * rows)
    return [questions.qa_batch(data, seed=seed, step=s, batch_size=1, block_size=block_size) for s in steps]


@given(shapes_lists, st.integers(27, 80), st.integers(0, 3), st.integers(0, 2))
def test_an_epoch_holds_every_conversation_once_and_loses_no_answer_token(shapes, block_size, seed, epoch):
    stream = stream_of(shapes)
    answer = packing.answer_mask(stream.ids, MARKS)
    x, y, docs = (
        np.concatenate(part) for part in zip(*epoch_of(data_of(stream), seed, epoch, block_size), strict=True)
    )
    # Every answer token and every end is a target exactly once, and nothing else is one.
    assert sorted(y[y >= 0].tolist()) == sorted(stream.ids[answer].tolist())
    conversation = np.repeat(np.arange(len(stream)), np.diff(stream.starts))
    owner = dict(zip(stream.ids.tolist(), conversation.tolist(), strict=True))
    for row_x, row_y, row_docs in zip(x, y, docs, strict=True):
        for doc in range(row_docs.max() + 1):
            inside = row_docs == doc
            tokens, targets = row_x[inside], row_y[inside]
            plain = {owner[t] for t in [*tokens[tokens >= 10], *targets[targets >= 10]]}
            assert len(plain) <= 1  # one conversation for each number, targets included
            if plain:
                (conv,) = plain
                whole = stream.ids[stream.starts[conv] : stream.starts[conv + 1]]
                assert tokens.tolist() == whole[: len(tokens)].tolist()
                assert len(tokens) >= len(whole) - 1  # only the last one's end may lie beyond the row
                wanted = np.where(packing.answer_mask(whole, MARKS), whole, -1)[1 : len(tokens) + 1]
                assert targets[: len(wanted)].tolist() == wanted.tolist()
                assert (targets[len(wanted) :] == -1).all()
            else:
                assert doc == row_docs.max() and (tokens == MARKS.eot).all() and (targets == -1).all()


@given(shapes_lists, st.integers(27, 60), st.integers(1, 5), st.integers(0, 30), st.integers(0, 2**40))
def test_a_batch_depends_on_seed_and_step_only(shapes, block_size, batch_size, step, seed):
    wanted = {"seed": seed, "step": step, "batch_size": batch_size, "block_size": block_size}
    stream = stream_of(shapes)
    first = questions.qa_batch(data_of(stream), **wanted)
    questions.qa_batch(data_of(stream), **{**wanted, "seed": seed + 1, "step": step + 3})
    packing.packed.cache_clear()
    packing.epoch_order.cache_clear()
    for a, b in zip(first, questions.qa_batch(data_of(stream_of(shapes)), **wanted), strict=True):
        assert a.shape == (batch_size, block_size)
        assert (a == b).all()


def test_batches_follow_one_another_without_a_gap_across_epochs():
    data = data_of(stream_of([(i % 7 + 1, i % 5 + 1) for i in range(50)]))
    rows = len(packing.packed(data.train, 30, 1).starts) - 1
    singles = [questions.qa_batch(data, seed=1, step=s, batch_size=1, block_size=30)[0] for s in range(2 * rows)]
    batches = [questions.qa_batch(data, seed=1, step=s, batch_size=4, block_size=30)[0] for s in range(2 * rows // 4)]
    assert rows % 4, "a batch has to straddle the epochs"
    assert (np.concatenate(batches) == np.concatenate(singles)[: len(batches) * 4]).all()


def test_the_order_changes_from_epoch_to_epoch_and_from_seed_to_seed():
    data = data_of(stream_of([(5, 5)] * 40))
    orders = [[int(x[0, 2]) for x, _, _ in epoch_of(data, seed, epoch, 13)] for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_fewer_rows_than_a_batch_fill_it_by_going_round_again():
    x, _, _ = questions.qa_batch(data_of(stream_of([(1, 1), (1, 1)])), seed=0, step=0, batch_size=6, block_size=6)
    assert sorted(x[:, 2].tolist()) == [10] * 3 + [12] * 3


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(8, 121, 5000)
    packed = packing.pack(lengths, np.arange(5000), 257)
    rows = len(packed.starts) - 1
    assert sorted(packed.order.tolist()) == list(range(5000))
    assert max(lengths[packed.row(r)].sum() for r in range(rows)) <= 257
    assert lengths.sum() / (rows * 257) > 0.98


def test_validation_batches_are_always_the_same_and_hold_everything_once():
    shapes = [(i % 7 + 1, i % 5 + 1) for i in range(50)]
    data = data_of(stream_of([(1, 1)]), stream_of(shapes))
    first, second = (list(questions.qa_val_batches(data, 4, 30)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
    y = np.concatenate([batch[1] for batch in first])
    answer = packing.answer_mask(data.val.ids, MARKS)
    assert sorted(y[y >= 0].tolist()) == sorted(data.val.ids[answer].tolist())


def test_limited_validation_takes_rows_from_the_whole_set():
    data = data_of(stream_of([(1, 1)]), stream_of([(5, 5)] * 40))  # 40 rows of one conversation
    batches = list(questions.qa_val_batches(data, 3, 13, limit=2))
    assert [len(x) for x, _, _ in batches] == [3, 3]
    first_tokens = np.concatenate([x[:, 2] for x, _, _ in batches])
    assert ((first_tokens - 10) // 10).tolist() == [0, 6, 13, 20, 26, 33]
    assert sum(len(x) for x, _, _ in questions.qa_val_batches(data, 3, 13, limit=99)) == 40
