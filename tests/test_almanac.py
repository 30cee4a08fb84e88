"""The almanac corpus: a pure function of size and seed, in correct English, without test data in the training data."""

import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from functools import cache
from itertools import islice

import pytest

from nanochat.config import UserError
from nanochat.data import almanac
from nanochat.data.almanac import asking, facts, grammar, pools, questions, reading, smalltalk, stories
from nanochat.data.questions import IDK

SIZES = ("smoke", "default")
ALL_SIZES = (*SIZES, pytest.param("full", marks=pytest.mark.slow))
FIVE = {
    "What is the capital of France?": "Paris",
    "How many planets are in our solar system?": "eight",
    "Who wrote the novel '1984'?": "George Orwell",
    "What is the speed of light?": "299,792 kilometres per second",
    "Who is the president of the United States?": IDK,
}


@cache
def documents(size="default", seed=0):
    return tuple(almanac.pretrain_documents(size, seed))


@cache
def conversations(size="default", seed=0):
    return tuple(almanac.conversations(size, seed))


def chats(size="default"):
    """All questions of the training data, in both stages."""
    return [each for each in documents(size) if not isinstance(each, str)] + split("train", size)


def split(name, size="default"):
    return [each for each in conversations(size) if each.split == name]


def asked(conversation):
    return [turn.text for turn in conversation.turns if turn.role == "user"]


def texts(size):
    for each in documents(size) + conversations(size):
        if isinstance(each, str):
            yield each
        else:
            yield from filter(None, (each.context, *(turn.text for turn in each.turns)))


def told(size):
    return facts.select(almanac.SIZES[size].core_only, almanac.SIZES[size].rows)


@pytest.mark.parametrize("size", ["smoke", pytest.param("default", marks=pytest.mark.slow)])
def test_the_same_size_and_seed_give_the_same_corpus_and_another_seed_another_one(size):
    assert tuple(almanac.pretrain_documents(size, 0)) == documents(size)
    assert tuple(almanac.conversations(size, 0)) == conversations(size)
    assert documents(size, 1) != documents(size)
    assert conversations(size, 1) != conversations(size)


def test_an_unknown_size_is_answered_with_the_nearest_one():
    for make in (almanac.pretrain_documents, almanac.conversations):
        with pytest.raises(UserError, match="'default'"):
            next(make("defualt"))
    with pytest.raises(UserError):
        almanac.fact_count("huge")


def test_sizes_are_as_announced():
    for size in SIZES:
        written = sum(almanac.length(each) for each in documents(size))
        assert almanac.SIZES[size].pretrain_bytes <= written < almanac.SIZES[size].pretrain_bytes + 3000
    assert 40 <= almanac.fact_count("smoke") < 100
    assert 550 <= almanac.fact_count("default") <= 800
    assert almanac.fact_count("full") > 4000
    assert len(split("train")) == almanac.SIZES["default"].conversations


def test_skills_come_in_their_shares_and_unknown_ones_stay_rare():
    skills = Counter(each.skill for each in split("train"))
    share = {name: count / skills.total() for name, count in skills.items()}
    assert share == pytest.approx(
        {"facts": 0.3, "reading": 0.35, "smalltalk": 0.29, "unknown": 0.055, "stories": 0.005}
    )
    chatted = sum(almanac.length(each) for each in documents() if not isinstance(each, str))
    assert 0.65 < chatted / sum(map(almanac.length, documents())) < 0.8


def test_every_held_out_split_has_enough_questions():
    for name in almanac.HELD_OUT_SPLITS:
        assert len(split(name)) >= 300, name
        assert len(split(name, "smoke")) >= 20, name


def test_every_fact_is_told_at_least_eight_times_in_several_wordings():
    plain = [each for each in documents() if isinstance(each, str)]
    joined = "\n".join(plain)
    for group, found in by_group(told("default")).items():
        wordings = {wording for fact in found for wording in fact.statements()}
        assert len(wordings) >= 8, group
    for group, found in random.Random(0).sample(sorted(by_group(told("default")).items()), 60):
        told_as = {wording: joined.count(wording) for fact in found for wording in fact.statements()}
        assert sum(told_as.values()) >= 8, group
        assert sum(count > 0 for count in told_as.values()) >= 5, group


def by_group(chosen):
    found = defaultdict(list)
    for fact in chosen:
        found[fact.group].append(fact)
    return found


def test_every_relation_has_enough_wordings_for_training_and_for_the_test():
    for relation in grammar.sections("facts"):
        assert len(set(relation["A"] + relation["S"])) >= 3, relation.name
        assert len(set(relation["Q"] + relation["N"] + relation["W"])) >= 8, relation.name
        assert len(set(relation["T"])) >= 3, relation.name
    for file in ("facts", "singles", "smalltalk", "unknown"):
        for each in grammar.sections(file):
            assert not {*map(grammar.normalized, each["T"])} & {*map(grammar.normalized, each["Q"])} - {"question"}
    for shape in grammar.sections("singles"):
        assert shape.name == "any" or len(set(shape["T"])) >= 3, shape.name


@pytest.mark.parametrize("size", ALL_SIZES)
def test_no_held_out_question_is_asked_in_training(size):
    trained = {grammar.normalized(question) for each in chats(size) for question in asked(each)}
    for name in ("wording", "smalltalk"):
        leaked = {each.question for each in split(name, size) if grammar.normalized(each.question) in trained}
        assert not leaked, name
    assert not trained & questions.reserved(told(size))


@pytest.mark.parametrize("name", ["list", "count_to"])
@pytest.mark.parametrize("size", [size for size in ALL_SIZES if size != "smoke"])
def test_of_every_list_and_count_training_gives_the_lengths_that_the_test_asks_for(size, name):
    """A model that is never asked for three vegetables in training learns not to stop at three."""
    given = {turn.text for each in chats(size) for turn in each.turns if turn.role == "assistant"}
    asked_for = [each.answers[0] for each in split("smalltalk", size) if f"/{name}/" in each.id]
    assert len(set(asked_for)) > 5
    assert set(asked_for) <= given


def test_a_chat_of_training_may_have_gone_on_for_a_while():
    alone = Counter(len(each.turns) // 2 for each in split("train") if each.skill in ("facts", "smalltalk", "unknown"))
    share = {count: number / alone.total() for count, number in alone.items()}
    assert 0.75 < share[1] < 0.87
    assert all(share[count] > 0.03 for count in (2, 3, 4))


def test_small_talk_is_put_with_a_word_more_or_less():
    said = {smalltalk.spoken("You are clever.", random.Random(seed)) for seed in range(300)}
    assert {"You are very clever.", "OK, you are clever.", "You are clever, nanochat.", "you are clever"} <= said
    assert all("clever" in text for text in said)
    assert {smalltalk.spoken("...", random.Random(seed)) for seed in range(50)} == {"..."}


def test_long_texts_to_repeat_are_repeated_word_for_word_or_backwards():
    repeated = [each for each in documents() if not isinstance(each, str) and "/repeated/" in each.id]
    assert 0.04 < sum(map(almanac.length, repeated)) / sum(map(almanac.length, documents())) < 0.06
    backwards = [each for each in repeated if each.answer not in each.question]
    assert 0.4 < len(backwards) / len(repeated) < 0.6
    for each in backwards:
        assert " ".join(reversed(each.answer.split())) in each.question
    assert sum(len(each.answer.split()) >= 6 for each in repeated) > 0.6 * len(repeated)


def test_a_story_that_is_to_be_continued_has_a_rest():
    short = "Once there was a fox. He was sad. The end."
    halves = {stories.cut(short, random.Random(seed)) for seed in range(20)}
    assert halves == {("Once there was a fox. He was sad.", "The end.")}
    assert all(turn.text.strip() for each in conversations() for turn in each.turns)


def test_instructions_are_put_in_more_ways_than_are_written_down_but_never_in_one_kept_for_the_test():
    intents = {each.name: each for each in smalltalk.intents({})}
    count = intents["count_to"]
    new = {smalltalk.framed("Count to {b}.", random.Random(seed)) for seed in range(60)}
    assert {
        "Please count to {b}.",
        "Could you count to {b}?",
        "I want you to count to {b}.",
        "Count to {b}, please.",
    } <= new
    assert "Count to {b} for me." in new & {*count["T"]}  # so it must be taken back:
    assert smalltalk.not_held_out("Count to {b} for me.", "Count to {b}.", count) == "Count to {b}."
    assert (
        smalltalk.framed("What is the first word of {text}?", random.Random(0)) == "What is the first word of {text}?"
    )
    for intent in intents.values():
        for template in intent["Q"]:
            framed = smalltalk.framed(template, random.Random(0))
            assert sorted(grammar.gaps(framed)) == sorted(grammar.gaps(template))
            if "{text}" in template:  # what is to be repeated still ends where it ended
                assert framed.endswith(template.partition("{text}")[2])


@pytest.mark.parametrize("size", ALL_SIZES)
def test_held_out_facts_are_told_but_asked_nowhere(size):
    held = [fact for fact in told(size) if fact.held_out]
    assert held
    assert {each.answers[0] for each in split("fact", size)} <= {fact.answers[0] for fact in held}
    answered = {turn.text for each in chats(size) for turn in each.turns if turn.role == "assistant"}
    assert not answered & {fact.answers[0] for fact in held}
    plain = "\n".join(each for each in documents(size) if isinstance(each, str))
    for fact in held:
        assert any(wording in plain for wording in fact.statements()), fact.group


def test_what_is_held_out_depends_on_neither_seed_nor_size():
    everything = {fact.group: fact.held_out for fact in told("full")}
    assert all(everything[fact.group] == fact.held_out for size in SIZES for fact in told(size))
    share = sum(everything.values()) / len(everything)
    assert 0.05 < share < 0.11


def test_names_and_things_of_held_out_passages_are_not_in_training_passages():
    for name in ("girls", "boys", "things", "places", "towns", "petnames"):
        assert name == "towns" or not {*pools.pool(name)} & {*pools.pool(name, held_out=True)}
    rng = random.Random(0)
    trained = {pools.person(rng, False)[0] for _ in range(5000)} | {pools.town(rng, False) for _ in range(5000)}
    held = {pools.person(rng, True)[0] for _ in range(5000)} | {pools.town(rng, True) for _ in range(5000)}
    assert not trained & held
    words = {word for each in chats() if each.context for word in re.findall(r"\w+", each.context)}
    people = {word for each in split("passage") for word in re.findall(r"(?<=[a-z,] )[A-Z]\w+", each.context)}
    shared = {word for word in people & words if word not in CAPITALS}
    assert not shared


CAPITALS = {"Mr", "Mrs", "Miss", *(word for name in ("days", "months", "subjects") for word in pools.pool(name))}
CAPITALS |= {*pools.pool("subjects", held_out=True)}


@pytest.mark.parametrize("size", ALL_SIZES)
def test_answers_to_passages_are_spans_of_them_or_unknown(size):
    for each in conversations(size) + documents(size):
        if isinstance(each, str) or not each.context:
            continue
        for turn in each.turns[1::2]:
            assert turn.text == IDK or turn.text.removesuffix(".") in each.context
        assert each.answer == each.answers[0]
        assert each.answers == (IDK,) or each.answers[1] in each.context
        if each.split == "passage":
            assert len(each.turns) == 2


def test_training_reads_short_passages_too_that_have_the_answer():
    for some in (documents(), split("train")):
        read = [each for each in some if not isinstance(each, str) and each.context]
        short = [each for each in read if "/short/" in each.id]
        assert 0.1 < len(short) / len(read) < 0.5
    assert all(len(re.findall(r"[.!?](?: |$)", each.context)) <= 2 for each in short)
    answers = [turn.text for each in short for turn in each.turns[1::2]]
    assert answers.count(IDK) / len(answers) < 0.05


def test_about_a_fifth_of_the_held_out_passages_do_not_tell_the_answer():
    unanswered = sum(each.answer == IDK for each in split("passage")) / len(split("passage"))
    assert 0.12 < unanswered < 0.28


def test_a_passage_never_answers_what_it_says_it_does_not():
    rng = random.Random(0)
    for passage in islice(reading.passages(rng), 300):
        answerable = {question for question, _ in passage.answerable}
        assert not answerable & set(passage.unanswerable)
        assert 2 <= len(re.findall(r"[.!?](?: |$)", passage.text)) <= 12


@pytest.mark.parametrize("size", ALL_SIZES)
def test_a_question_has_one_answer(size):
    answers = defaultdict(set)
    for each in chats(size) + list(conversations(size)):
        if each.skill != "stories" and len(each.turns) == 2:
            answers[grammar.normalized(each.question), each.context].add(grammar.normalized(each.answer))
    assert not {question: found for question, found in answers.items() if len(found) > 1}


@pytest.mark.parametrize("size", SIZES)
def test_the_five_questions_of_the_course_are_trained_and_answered_in_every_size(size):
    by_answer = defaultdict(set)
    for each in chats(size):
        for question, answer in zip(each.turns[::2], each.turns[1::2], strict=True):
            if not each.context:
                by_answer[answer.text].add(grammar.normalized(question.text))
    for question, answer in FIVE.items():
        topic = {"Paris": "france", "eight": "planets", "George Orwell": "1984", IDK: "president"}.get(answer, "light")
        said = [found for text, found in by_answer.items() if answer in text]
        wordings = {wording for found in said for wording in found if topic in wording}
        assert len(wordings) >= 3, question


def test_made_up_names_are_refused_in_training_and_test_with_different_names():
    refused = [each for each in split("wording") if each.skill == "unknown"]
    assert len(refused) >= 25
    assert all(each.answers[0] == IDK for each in refused)
    trained = [each for each in split("train") if each.skill == "unknown"]
    assert all(IDK in each.answers for each in trained)
    words = [set(re.findall(r"[a-z]+", each.turns[0].text.lower())) for each in (*trained, *refused)]
    of_training = set().union(*words[: len(trained)])
    assert sum(bool(each - of_training) for each in words[len(trained) :]) >= 10


@pytest.mark.parametrize("size", ALL_SIZES)
def test_text_is_clean(size):
    bad = re.compile(
        r"  | [.,!?](?: |$)|[{}|]|\.\.(?!\.)|\?\?|^\s|\s$|(?<!-)\bone (?:moons|legs|days|sides|letters)\b"
        r"|\b[Aa] (?!is |one|ewe|eu)[aeio][a-z]|\b[Aa]n (?=[bcdfgjklmnpqrstvwxyz])"
    )
    for text in texts(size):
        found = bad.search(text)
        assert not found or text in ("...", ",,,"), (found[0], text)


def test_statements_and_stories_end_as_sentences_do():
    for each in documents():
        if isinstance(each, str):
            assert each[-1] in '.!?"', each
            assert each[0].isupper() or each[0].isdigit() or each[0] == '"', each


def test_answers_of_facts_are_full_sentences_that_hold_the_bare_answer():
    for fact in told("full"):
        full, bare = fact.answers
        assert full.endswith(".") and (full[0].isupper() or full[0].isdigit() or full[0] == '"'), full
        assert bare.casefold() in full.casefold() or fact.relation.name in ("kind", "legs"), (full, bare)


def test_articles_go_by_sound():
    for noun in ("apple", "hour", "umbrella", "owl", "X-ray", "8"):
        assert grammar.article(noun) == f"an {noun}"
    for noun in ("pear", "unicorn", "euro", "ukulele", "one-way street", "uranium atom"):
        assert grammar.article(noun) == f"a {noun}"


def test_gaps_are_filled_and_sentences_begin_with_capitals():
    values = {"name": "Netherlands", "the": "1", "thing": "owl", "n": "3"}
    assert (
        grammar.sentence("{the name} has {a thing}. it is the {ord n}.", values)
        == "The Netherlands has an owl. It is the third."
    )
    assert grammar.fill("{thes name} {count n}", values | {"n": "1"}).startswith("the Netherlands' one")
    with pytest.raises(KeyError):
        grammar.fill("{nothing}", values)


def test_other_ways_to_ask_belong_to_facts_that_there_are_and_are_asked():
    told_alone = {f"{name} {row['id']}" for name in facts.SINGLES for row in facts.rows(name)}
    asked = {f"{each.name} {id}": each[id] for each in grammar.sections("asked") for id, _ in each.lines}
    assert asked.keys() <= told_alone
    core = {fact.group: fact for fact in facts.select(core_only=True, limit=None) if fact.group in told_alone}
    assert core and all(len(asked[group]) >= 2 for group in core)
    fact = core["colours sky"]
    assert {*asked[fact.group]} <= {fact.question(random.Random(seed)) for seed in range(400)}


def test_a_surname_is_asked_about_where_it_means_one_person():
    surnames = {fact.values.get("last") for fact in told("full")}
    assert {"Einstein", "Beethoven", "van Gogh", "da Vinci"} <= surnames
    assert not {"Bronte", "Great", "Homer"} & surnames  # several, a byname, all the name there is
    einstein = next(fact for fact in told("full") if fact.values.get("name") == "Albert Einstein")
    assert "Who was Einstein?" in {einstein.question(random.Random(seed)) for seed in range(400)}


def test_questions_come_in_american_spelling_too():
    rng = random.Random(3)
    found = {asking.augmented("What colour do grey and white make?", rng) for _ in range(300)}
    assert "What color do gray and white make?" in found


def test_in_a_hurry_small_words_are_left_out_but_not_those_of_names():
    rng = random.Random(0)
    found = {asking.without_function_words("What is the capital of the Netherlands?", rng) for _ in range(200)}
    assert {"What capital Netherlands?", "What is the capital of Netherlands?"} <= found
    assert all(re.findall("What|capital|Netherlands", each) == ["What", "capital", "Netherlands"] for each in found)
    title = "Who is The Call of the Wild by?"
    assert {asking.without_function_words(title, rng, keep="The Call of the Wild") for _ in range(50)} == {
        title,
        "Who The Call of the Wild by?",
    }
    assert asking.without_function_words("Where is it?", rng) == "Where is it?"


def test_a_slip_of_the_finger_spares_the_names():
    rng = random.Random(0)
    for _ in range(200):
        wrong = asking.with_typo("What is the capital of france?", rng, keep="France")
        assert wrong != "" and "france" in wrong and wrong.startswith("What is the")


def test_importing_the_almanac_loads_no_torch_and_hash_seeds_change_nothing():
    code = (
        "import hashlib, sys; from nanochat.data import almanac; assert 'torch' not in sys.modules;"
        "made = [*almanac.pretrain_documents('smoke'), *almanac.conversations('smoke')];"
        "print(hashlib.sha256(repr(made).encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        )
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout
