"""Checks for the exercises of notebook 04, QA finetuning."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from . import compare, exercise

_EOT, _USER, _ASSISTANT, _END = 90, 91, 92, 93
_TALK = [_EOT, _USER, 5, 6, _ASSISTANT, 7, _END, _USER, 8, _ASSISTANT, 9, 3, _END]
_OPEN = [_EOT, _USER, 5, 6, 2]


def _mask(ids: Sequence[int], assistant: int, end: int) -> list[bool]:
    inside, mask = False, []
    for token in ids:
        mask.append(inside)
        inside = token == assistant or (inside and token != end)
    return mask


@exercise(
    "04.mask",
    praise="the model is given the assistant's mark and has to generate the end mark itself: easy to get wrong.",
    hints=(
        "Go through the ids with one variable that remembers whether you are inside an answer.",
        "An id counts if you were inside *before* you looked at it. Only then look whether it opens or closes an answer.",
        "mask.append(inside); then inside becomes True at the assistant's mark and False at the end mark.",
    ),
)
def _answer_mask(answer: Callable[[list[int], int, int], list[bool]]) -> str | None:
    for ids in (_TALK[:7], _TALK, _OPEN):
        wanted = [int(value) for value in _mask(ids, _ASSISTANT, _END)]
        got = answer(list(ids), _ASSISTANT, _END)
        what = f"with {_ASSISTANT} for <|assistant|> and {_END} for <|end|>, the mask of {ids}"
        if wrong := compare(what, got if got is None else [int(value) for value in got], wanted):
            return wrong
    return None


@exercise(
    "04.targets",
    praise="input and target are shifted by one, and the mask goes with the target.",
    hints=(
        "The input is everything but the last id, the target everything but the first.",
        "Where a target carries no loss, write -1 in its place.",
        "The mask says which *ids* count. As a target, id number i stands at place i - 1: the mask loses its first "
        "entry too.",
    ),
)
def _targets(answer: Callable[[list[int], list[bool]], tuple[list[int], list[int]]]) -> str | None:
    for ids in (_TALK[:7], _TALK, _OPEN):
        mask = _mask(ids, _ASSISTANT, _END)
        got = answer(list(ids), list(mask))
        if not isinstance(got, tuple) or len(got) != 2:
            return "the function should give two lists, the input and the target; it does not yet."
        x, y = got
        shown = [int(value) for value in mask]
        if wrong := compare(f"the input of {ids}", list(x), ids[:-1]):
            return wrong
        wanted = [token if counts else -1 for token, counts in zip(ids[1:], mask[1:], strict=True)]
        if wrong := compare(f"the target of {ids} with mask {shown}", list(y), wanted):
            return wrong
    return None


@exercise(
    "04.documents",
    praise="one cumulative sum, and attention knows where it must not look.",
    hints=(
        "Each conversation begins with the end-of-text mark of the one before. What should happen to the number there?",
        "Count the marks seen so far, the one at the place itself included.",
        "The first conversation has number 0, so take one off the count. With numpy: (np.array(ids) == eot).cumsum() - 1.",
    ),
)
def _documents(answer: Callable[[list[int], int], list[int]]) -> str | None:
    for ids in (_TALK, [*_TALK[:7], *_TALK], [_EOT, _EOT, 1, 2, _EOT, 3]):
        count, wanted = -1, []
        for token in ids:
            count += token == _EOT
            wanted.append(count)
        got = answer(list(ids), _EOT)
        numbers = got if got is None else [int(number) for number in got]
        if wrong := compare(f"documents({ids}, eot={_EOT})", numbers, wanted):
            return wrong
    return None


def _word_f1(prediction: str, accepted: str) -> float:
    said, wanted = prediction.lower().split(), accepted.lower().split()
    same = sum((Counter(said) & Counter(wanted)).values())
    return 2 * same / (len(said) + len(wanted)) if same else 0.0


@exercise(
    "04.f1",
    praise="a half-right answer gets half the score, and neither saying everything nor one safe word pays off.",
    hints=(
        "Split both into words. How many words do they share? A word that is there twice can be shared twice only if "
        "the other side has it twice.",
        "from collections import Counter: (Counter(a) & Counter(b)) keeps what both have. Precision is that number "
        "divided by the words that were said, recall divided by the words that were wanted.",
        "2 * precision * recall / (precision + recall), which is 2 * same / (words said + words wanted). "
        "Nothing in common is 0.",
    ),
)
def _f1(answer: Callable[[str, str], float]) -> str | None:
    cases = (
        ("Paris", "Paris"),
        ("The capital of France is Paris", "paris"),
        ("London", "Paris"),
        ("a red boat", "the red boat"),
        ("boat boat boat", "red boat"),
        ("very very old", "a very very big boat"),
        ("I do not know", "I don't know"),
    )
    for said, accepted in cases:
        if wrong := compare(f"f1({said!r}, {accepted!r})", answer(said, accepted), _word_f1(said, accepted)):
            return wrong
    return None
