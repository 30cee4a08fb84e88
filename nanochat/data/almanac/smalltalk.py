"""Small talk and instructions. Each intent has exactly one right answer, so that answers can be scored.

Held out are wordings, and for instructions with endlessly many possible arguments (texts, words, pairs of numbers) also
arguments. Arguments of lists and of counting from one are not held out: there are few, and a model that never saw
three vegetables asked for would not learn to stop at three.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Iterator, Sequence

from ..questions import Conversation
from .asking import augmented, single
from .grammar import Deck, Section, Values, fill, normalized, number_word, section, sections, sentence
from .pools import composed, draw_all, pool

_BACKWARDS = 0.5  # share of the longer texts that are to be said backwards
_WORDS = ("things", "foods", "colours", "days", "jobs", "pets", "sports", "months")
_IMPERATIVE = re.compile(r"(count|copy|give|list|name|put|repeat|reverse|say|tell|turn|type|write)\b", re.IGNORECASE)
_ASKED = ("Please {}", "Can you {}", "Could you {}", "Would you {}", "Will you {}", "Now {}", "I want you to {}")
_CLOSED = ("{} for me.", "{}, please.")  # only if no text to be repeated verbatim follows


def framed(template: str, rng: random.Random) -> str:
    """An instruction ("Count to {b}.") as a polite request ("Could you count to {b}?"); other templates are unchanged."""
    if not _IMPERATIVE.match(template) or (":" in template and "{text}" not in template):
        return template
    bare = template[0].lower() + template[1:]
    if "{text}" in template:
        return rng.choice(_ASKED).format(bare)
    if rng.random() < 0.3:
        return rng.choice(_CLOSED).format(template.rstrip("."))
    asked = rng.choice(_ASKED)
    return asked.format(bare.rstrip(".")) + ("?" if "you" in asked.split()[:2] else ".")


def held_out_argument(*parts: object) -> bool:
    """Whether an instruction with this argument is for the test only: one in six, chosen by a checksum."""
    return zlib.crc32(" ".join(map(str, parts)).encode()) % 6 == 0


def _word(rng: random.Random, held_out: bool, made_up: float = 0.5) -> str:
    """A word of some pool; in training, with probability `made_up`, an invented word, which can only be copied."""
    if not held_out and rng.random() < made_up:
        return composed(rng, held_out).lower()
    return rng.choice(pool(rng.choice(_WORDS)))


def _words(rng: random.Random, held_out: bool, count: int, made_up: float = 0.5) -> list[str]:
    while True:
        words = [_word(rng, held_out, made_up) for _ in range(count)]
        if len({*words}) == count and " " not in "".join(words) and held_out_argument(*words) == held_out:
            return words


_SAYINGS = (
    "The {thing} is {colour}.",
    "{who} likes {food}.",
    "I like {food}.",
    "{who} has {a colour} {thing}.",
    "It is {day}.",
)


def _text(rng: random.Random, held_out: bool) -> Values:
    if rng.random() < 0.5:
        return {"text": " ".join(_words(rng, held_out, rng.randint(2, 5)))}
    values = draw_all("who=person thing=things colour=colours food=foods day=days", rng, held_out)
    while held_out_argument(text := fill(rng.choice(_SAYINGS), values)) != held_out:
        values = draw_all("who=person thing=things colour=colours food=foods day=days", rng, held_out)
    return {"text": text if rng.random() < 0.5 else text.rstrip(".")}


def _bigger(rng: random.Random, held_out: bool) -> Values:
    while True:
        a, b = rng.sample(range(1, rng.choice((11, 21, 21))), 2)
        if held_out_argument(min(a, b), max(a, b)) == held_out:
            return {"a": str(a), "b": str(b), "big": str(max(a, b)), "small": str(min(a, b))}


def _backwards(rng: random.Random, held_out: bool, counts: Sequence[int] = (2, 3, 3, 4)) -> Values:
    """Words, and the same in reverse order. Only a fifth is invented, since reversing is hard to learn."""
    words = _words(rng, held_out, rng.choice(counts), made_up=0.2)
    return {"text": " ".join(words), "backwards": " ".join(reversed(words))}


def _ends(rng: random.Random, held_out: bool) -> Values:
    words = _words(rng, held_out, rng.randint(3, 5))
    return {"text": " ".join(words), "first": words[0], "last": words[-1]}


def _counted(start: int, stop: int, rng: random.Random) -> Values:
    """Numbers from `start` to `stop`. In two of five cases the question has them in words ("Count to five.")."""
    said = number_word if rng.random() < 0.4 else str
    return {"a": said(start), "b": said(stop), "numbers": ", ".join(map(str, range(start, stop + 1)))}


def _count(rng: random.Random, held_out: bool) -> Values:
    while True:
        start = rng.randint(1, 20)
        stop = start + rng.randint(2, 9)
        if held_out_argument(start, stop) == held_out:
            return _counted(start, stop, rng)


def _count_to(rng: random.Random, held_out: bool) -> Values:
    return _counted(1, rng.randint(2, 25), rng)


def numbered(items: Sequence[str]) -> str:
    """`1. a dog, 2. a cat.` The numbers help the model to stop at the number of items it was asked for."""
    return ", ".join(f"{at}. {item}" for at, item in enumerate(items, 1)) + "."


def _list(rng: random.Random, held_out: bool) -> Values:
    found = rng.choice(sections("lists"))
    number = rng.randint(2, len(found["-"]))
    n = str(number) if not held_out and rng.random() < 0.3 else number_word(number)
    return {"n": n, "plural": found.head, "items": numbered(found["-"][:number])}


def _name(rng: random.Random, held_out: bool) -> Values:
    found = rng.choice(sections("lists"))
    return {"singular": found.name, "item": sentence(f"{found['-'][0]}.", {})}


_INSTRUCTIONS = {
    "repeat": _text,
    "backwards": _backwards,
    "first": _ends,
    "last": _ends,
    "count": _count,
    "count_to": _count_to,
    "list": _list,
    "name": _name,
    "bigger": _bigger,
}
# Weights of the intents; those not listed have weight 1. In training, intents that are hard to learn weigh more, as do
# greetings, with which most chats begin; in the test, instructions with many possible arguments.
_TRAINED = {
    "repeat": 4, "backwards": 12, "count": 4, "count_to": 2, "list": 6, "name": 2, "first": 3, "last": 3, "bigger": 7,
    "hello": 4, "who": 3, "able": 2, "made": 2, "goodbye": 2, "thanks": 2, "well": 2, "praise": 3, "insult": 2, "no": 3,
}  # fmt: skip
_TESTED = {
    "repeat": 5, "backwards": 7, "count": 5, "count_to": 2, "list": 7, "name": 2, "first": 2, "last": 2, "bigger": 4,
}  # fmt: skip


# Additions to a greeting or a compliment that do not change its meaning
_ADDRESSED = (
    "{}, nanochat{}",
    "{}, my friend{}",
    "{}, computer{}",
    "{}, please{}",
    "{} now{}",
    "{} again{}",
    "{}, really{}",
)
_OPENED = ("OK, {}", "Well, {}", "So, {}", "Oh, {}", "Now, {}", "And {}", "Nanochat, {}", "Hey nanochat, {}")
_GRADABLE = re.compile(
    r"\b(am|are|feel|was) (?=(?:sad|tired|ill|unhappy|angry|lonely|sick|bored|happy|well|clever|smart|funny|stupid|dumb|bad|"
    r"useless|boring|terrible|sorry|helpful|good|nice|kind)\b)"
)


def spoken(template: str, rng: random.Random) -> str:
    """A remark ("You are clever.") with random additions and changes ("OK, you are very clever, nanochat.")."""
    text = template
    if rng.random() < 0.5:
        text = _GRADABLE.sub(lambda match: match[0] + rng.choice(("so ", "very ", "really ", "quite ", "a bit ")), text)
    if (roll := rng.random()) < 0.25:
        bare = text.rstrip(".!?")
        text = rng.choice(_ADDRESSED).format(bare, text[len(bare) :]) if bare else text
    elif roll < 0.5 and text[:1].isalpha():
        begun = text if re.match(r"I\b", text) else text[0].lower() + text[1:]
        text = rng.choice(_OPENED).format(begun)
    if rng.random() < 0.5:
        text = text.lower()
    if rng.random() < 0.2:
        text = text.rstrip(".!?") or text
    return text


def intents(weights: dict[str, int]) -> tuple[Section, ...]:
    """The sections of smalltalk.txt, each as many times as `weights` says, by default once."""
    return tuple(each for each in sections("smalltalk") for _ in range(weights.get(each.name, 1)))


def repeated(texts: Iterator[str], rng: random.Random, prefix: str) -> Iterator[Conversation]:
    """Endless requests to repeat a longer text: one to three sentences of `texts`, or words, perhaps in reverse order.

    Reading comprehension requires copying, which a model learns much earlier from long answers than from short ones.
    """
    number = 0
    while True:
        if rng.random() < _BACKWARDS:
            intent, values = section("smalltalk", "backwards"), _backwards(rng, False, range(4, 11))
        else:
            intent, values = section("smalltalk", "repeat"), {"text": _long_text(next(texts), rng)}
        question, answer = fill(rng.choice(intent["Q"]), values), fill(intent["A"][0], values)
        yield single(question, (answer,), skill="smalltalk", split="train", conv_id=f"{prefix}/{number}")
        number += 1


def _long_text(text: str, rng: random.Random) -> str:
    """One to three sentences of `text`, or a sequence of random words."""
    if rng.random() < 0.4:
        return " ".join(_word(rng, False) for _ in range(rng.randint(6, 20)))
    sentences = re.split(r"(?<=[.!?]) (?=[A-Z])", text)
    at = rng.randrange(len(sentences))
    return " ".join(sentences[at : at + rng.randint(1, 3)])


def not_held_out(new: str, template: str, intent: Section) -> str:
    """`new`, or `template` if `new` is a wording that only the test may use."""
    return template if normalized(new) in map(normalized, intent["T"]) else new


def talk(rng: random.Random, split: str, prefix: str) -> Iterator[Conversation]:
    """Endless small talk: held-out wordings and arguments for the split "smalltalk", training ones otherwise."""
    held_out = split == "smalltalk"
    deck = Deck(intents(_TESTED if held_out else _TRAINED), rng)
    number = 0
    while True:
        intent = deck.draw()
        make = _INSTRUCTIONS.get(intent.name)
        values = make(rng, held_out) if make else {}
        template = rng.choice(intent["T" if held_out else "Q"])
        if not held_out and rng.random() < 0.4:
            changed = framed(template, rng) if make else spoken(template, rng)
            template = not_held_out(changed, template, intent)
        question = sentence(template, values) if make else template
        answer = fill(intent["A"][0], values)
        if not held_out and not make and rng.random() < 0.2:
            question = not_held_out(augmented(question, rng), question, intent)
        elif not held_out and make and rng.random() < 0.25:
            question = question[0].lower() + question[1:]
        bare = answer.rstrip(".")
        answers = (answer, bare) if make and bare != answer else (answer,)
        yield single(question, answers, skill="smalltalk", split=split, conv_id=f"{prefix}/{intent.name}/{number}")
        number += 1
