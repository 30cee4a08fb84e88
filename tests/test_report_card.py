"""Metrics against hand-made cases, baselines against counts by hand, and the report card of a tiny model."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat import checkpoint, paths
from nanochat.config import ModelConfig
from nanochat.data import corpus as corpus_files
from nanochat.data import questions as qa
from nanochat.data.conversation import IDK, Conversation, Turn, to_record
from nanochat.evaluation import baselines, card_text, scoring
from nanochat.evaluation import card as report_cards
from nanochat.evaluation.scoring import Scored, exact_match, f1, longest_overlaps, normalize, repetition, wilson
from nanochat.model import GPT

TEXTS = st.text(st.sampled_from("aAbBtThHeE nN.,'!\t é-1"), max_size=25)
WORD_LISTS = st.lists(st.sampled_from("abc"), max_size=12).map(" ".join)


# --- exact match and F1


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("A.", ""),  # punctuation goes first, so this is an article
        ("theatre and banana", "theatre and banana"),  # articles are whole words
        ("a-b", "ab"),
        ("Don't", "dont"),
        ("299,792,458 m/s", "299792458 ms"),
        ("«Café»\n", "«café»"),  # only ASCII punctuation
    ],
)
def test_normalisation_is_squads(text: str, normal: str) -> None:
    assert normalize(text) == normal


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "overlap"),
    [
        ("Paris", ["Paris"], True, 1.0),
        ("the PARIS.", ["paris", "France"], True, 1.0),
        ("in Paris", ["Paris"], False, 2 / 3),
        ("Paris", ["London"], False, 0.0),
        ("the cat sat on the mat", ["a cat on a mat"], False, 6 / 7),  # 3 of 4 said, 3 of 3 wanted
        ("b b b", ["b b"], False, 0.8),  # a word counts as often as both sides have it
        ("Gulf Stream", ["the North Atlantic", "the Gulf Stream"], True, 1.0),
        ("Gulf", ["the North Atlantic", "the Gulf Stream"], False, 2 / 3),  # the nearest answer counts
        ("", [""], True, 1.0),
        ("", [], True, 1.0),  # no answer accepted: unanswerable
        ("anything", [], False, 0.0),
        ("", ["Paris"], False, 0.0),
        ("the", ["Paris"], False, 0.0),
        ("!", ["."], True, 1.0),  # an answer that normalises to nothing does not count
        ("Paris", ["the", "Paris"], True, 1.0),
        ("the", ["a", "Paris"], False, 0.0),
        (IDK, [IDK], True, 1.0),
        ("i dont know", [IDK], True, 1.0),
        ("", [IDK], True, 1.0),
        (IDK, [], True, 1.0),
        ("I know Paris.", [IDK], False, 0.0),  # no partial credit for half a refusal
        (IDK, ["I know Paris."], False, 0.0),
        (IDK, ["It is not told.", IDK], True, 1.0),
        ("I do not know", [IDK], True, 1.0),
    ],
)
def test_scores_are_squads(prediction: str, answers: list[str], em: bool, overlap: float) -> None:
    assert exact_match(prediction, answers) is em
    assert f1(prediction, answers) == pytest.approx(overlap)


@given(TEXTS, st.lists(TEXTS, max_size=3), TEXTS)
def test_scores_have_the_properties_of_scores(prediction: str, answers: list[str], more: str) -> None:
    em, overlap = exact_match(prediction, answers), f1(prediction, answers)
    assert 0 <= overlap <= 1
    assert overlap == 1 or not em
    assert exact_match(f"  The {prediction.upper()}! ", answers) == em
    if normalize(more) and any(map(normalize, answers)):
        assert f1(prediction, [*answers, more]) >= overlap
    for answer in filter(normalize, answers):
        assert exact_match(answer, answers)
        assert f1(prediction, [answer]) == f1(answer, [prediction]) or not normalize(prediction)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)


def test_wilson_interval_has_its_published_values() -> None:
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)


@given(st.integers(1, 2000), st.data())
def test_wilson_interval_holds_the_share_and_narrows(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-12
    assert right / n - 1e-12 <= high <= 1
    more_low, more_high = wilson(4 * right, 4 * n)
    assert more_high - more_low < high - low


# --- longer texts


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0.0), ("one two three", 0.0), ("a b c d e f", 0.0), ("a b c d a b c d", 0.2), ("no no no no no no no", 0.75)],
)
def test_repetition_is_the_share_of_runs_that_were_there_before(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


def _longest_run(text: list[str], training: list[list[str]]) -> int:
    runs = {tuple(piece[i:j]) for piece in training for i, j in itertools.combinations(range(len(piece) + 1), 2)}
    spans = itertools.combinations(range(len(text) + 1), 2)
    return max((j - i for i, j in spans if tuple(text[i:j]) in runs), default=0)


@given(st.lists(WORD_LISTS, max_size=4), st.lists(WORD_LISTS, max_size=3))
def test_longest_overlap_is_what_comparing_all_runs_finds(texts: list[str], training: list[str]) -> None:
    expected = [_longest_run(text.split(), [piece.split() for piece in training]) for text in texts]
    assert longest_overlaps(texts, training) == expected


def test_overlap_ignores_case_and_punctuation_but_not_the_end_of_a_text() -> None:
    training = ["Once upon a time, there was a fox.", "The end."]
    assert longest_overlaps(["once upon a TIME there was a hen", "fox the end", "nothing"], training) == [7, 2, 0]


def test_text_measures_are_means_over_texts() -> None:
    measures = scoring.text_measures(["the fox ran", "a b c d a b c d"], ["A fox ran home."])
    assert measures == {
        "n": 2, "words": 5.5, "repetition": pytest.approx(0.1), "overlap_median": 1.5, "overlap_longest": 2,
        "copied": pytest.approx((2 / 3 + 1 / 8) / 2),
    }  # fmt: skip


# --- summary


def _scored(skill: str, split: str, prediction: str, *answers: str, stopped: bool = True) -> Scored:
    em, overlap = exact_match(prediction, answers), f1(prediction, answers)
    return Scored(skill, split, "?", prediction, answers, em, overlap, stopped)


def test_summary_counts_each_skill_and_split_and_leaves_stories_out_of_the_whole() -> None:
    scored = [
        _scored("facts", "wording", "Paris", "Paris"),
        _scored("facts", "wording", "Rome", "Paris", stopped=False),
        _scored("unknown", "wording", IDK, IDK, "No idea."),
        _scored("unknown", "wording", "Rome", IDK),
        _scored("facts", "wording", IDK, "Oslo"),
        _scored("stories", "val", "Once there was a fox.", "Once there was a hen."),
        _scored("facts", "fact", "Bern", "Bern"),
    ]
    rows = {(row["skill"], row["split"]): row for row in scoring.summary(scored)}
    assert set(rows) == {
        ("facts", "wording"), ("unknown", "wording"), ("all", "wording"), ("stories", "val"), ("facts", "fact"),
        ("all", "fact"),
    }  # fmt: skip
    facts, whole, story = rows["facts", "wording"], rows["all", "wording"], rows["stories", "val"]
    assert (facts["n"], facts["em"], facts["stop_rate"]) == (3, pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert (facts["em_low"], facts["em_high"]) == wilson(1, 3)
    assert (facts["refusal_rate"], facts["false_refusal_rate"]) == (None, pytest.approx(1 / 3))
    assert (whole["n"], whole["em"], whole["f1"]) == (5, 0.4, pytest.approx(0.4))
    assert (whole["unanswerable"], whole["refusal_rate"]) == (2, 0.5)
    assert (whole["answerable"], whole["false_refusal_rate"]) == (3, pytest.approx(1 / 3))
    assert (story["n"], story["em"], story["em_low"], story["f1"], story["stop_rate"]) == (1, None, None, None, 1.0)


# --- baselines


def test_ngram_bits_are_what_counting_by_hand_gives() -> None:
    train = np.array([0, 1, 0, 1, 0, 2], dtype=np.uint16)  # pairs: 01 twice, 10 twice, 02 once
    bits = baselines.ngram_bits_per_byte(train, np.array([[0, 1]]), np.array([[1, 3]]), np.array([1, 2, 3, 4]))
    unigram = [4 / 10, 2 / 10, 1 / 10]  # tokens 0, 1 and 2, plus one each of 6 + 4: token 1 has 3 / 10
    after_0 = (2 + 2 * 3 / 10) / (3 + 2)
    after_1 = (0 + 1 * unigram[2]) / (2 + 1)
    n_bytes = 2 + 4
    assert bits["uniform"] == pytest.approx(2 * 2 / n_bytes)
    assert bits["unigram"] == pytest.approx(-(math.log2(3 / 10) + math.log2(1 / 10)) / n_bytes)
    assert bits["bigram"] == pytest.approx(-(math.log2(after_0) + math.log2(after_1)) / n_bytes)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(0, 4))
def test_ngram_probabilities_sum_to_one(train: list[int], before: int) -> None:
    one = np.ones(5, dtype=np.int64)
    each = [
        baselines.ngram_bits_per_byte(np.array(train), np.array([[before]]), np.array([[token]]), one)
        for token in range(5)
    ]
    for name in ("uniform", "unigram", "bigram"):
        assert sum(2 ** -bits[name] for bits in each) == pytest.approx(1)


def test_a_long_corpus_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_TOKENS", 1000)
    sample = baselines._sample(np.arange(100_000, dtype=np.uint32))
    assert sample.shape == (100, 10)
    assert (sample[0, 0], sample[-1, -1]) == (0, 99_999)
    assert baselines._sample(np.arange(1000)).shape == (1, 1000)


def test_majority_baseline_is_the_most_common_answer() -> None:
    assert baselines.majority_baseline([("a", "x"), ("b", "y"), ("c", "y"), ("d", "x")]) == "x"


def test_nearest_baseline_prefers_rare_words_and_short_questions() -> None:
    pairs = [
        ("What is the capital of France?", "Paris"),
        ("What is the capital of Norway?", "Oslo"),
        ("What is the symbol of iron, and what is the colour of it?", "Fe"),
        ("What is the symbol of iron?", "Iron"),
    ]
    asked = ["Norway: the capital, please!", "capital of france", "symbol of iron?", "Zebras?"]
    assert baselines.nearest_baseline(pairs, asked) == ["Oslo", "Paris", "Iron", "Paris"]


# --- a model


@pytest.fixture(scope="module")
def answering() -> checkpoint.Checkpoint:
    model, tok = tiny.tiny_model()
    return checkpoint.Checkpoint(model, tok, {"run": "tiny", "stage": "fine_tuned"}, Path("tiny.pt"))


def _conversation(question: str, *answers: str, skill: str = "facts", split: str = "wording") -> Conversation:
    turns = (Turn("user", question), Turn("assistant", answers[0]))
    return Conversation(turns, answers=answers, skill=skill, split=split)


def test_bits_per_byte_are_the_models_log_probabilities_over_the_bytes(answering: checkpoint.Checkpoint) -> None:
    model, tok = answering.model, answering.tokenizer
    tokens = np.array(tok.encode("hello wave html count " * 8), dtype=np.uint16)
    x, y = corpus_files.val_windows(tokens, 8)
    with torch.inference_mode():
        logp = torch.log_softmax(model(torch.from_numpy(x)).double(), dim=-1)
    nats = -logp.gather(2, torch.from_numpy(y)[..., None]).sum().item()
    expected = nats / math.log(2) / sum(len(tok.token_bytes(token)) for token in y.ravel())
    assert report_cards.bits_per_byte(model, tokens, tok, 8, None) == pytest.approx(expected, rel=1e-5)


def test_scores_come_in_the_order_of_the_questions_whatever_the_batches(
    answering: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [_conversation(question, answer) for question, answer in [*tiny.ANSWERS.items()] * 3]
    steps: list[tuple[int, int]] = []
    together = report_cards.score(answering, asked, progress=lambda done, total, text: steps.append((done, total)))
    assert [item.question for item in together] == [*tiny.ANSWERS] * 3
    assert [item.prediction for item in together] == [*tiny.ANSWERS.values()] * 3
    assert all(item.em and item.f1 == 1 and item.stopped for item in together)
    assert steps[-1] == (12, 12)
    monkeypatch.setattr(report_cards, "BATCH", 1)
    assert report_cards.score(answering, asked) == together


def test_any_accepted_answer_counts_and_a_wrong_one_does_not(answering: checkpoint.Checkpoint) -> None:
    right, wrong = report_cards.score(
        answering, [_conversation("hello", "Good day.", "hello how can I help"), _conversation("hello", "Hello you!")]
    )
    assert (right.em, right.f1) == (True, 1.0)
    assert (wrong.em, 0 < wrong.f1 < 1) == (False, True)


def test_an_answer_that_goes_on_and_on_has_not_stopped() -> None:
    tok = tiny.tiny_model()[1]
    model = GPT(ModelConfig(tok.vocab_size, 64, n_layer=1, n_head=1, n_embd=8)).eval()  # its head is zero: token 0
    endless = checkpoint.Checkpoint(model, tok, {}, Path("endless.pt"))
    (item,) = report_cards.score(endless, [_conversation("hello", "yes")])
    assert (item.stopped, item.em) == (False, False)
    assert len(item.prediction) <= 32


def test_earlier_turns_stand_as_written_and_only_the_last_answer_is_asked_for(
    answering: checkpoint.Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def generate(model: GPT, prompts: list[list[int]], **sampling: object) -> list[list[int]]:
        seen.extend(prompts)
        return [answering.tokenizer.encode("two") for _ in prompts]

    monkeypatch.setattr(report_cards, "generate", generate)
    turns = (Turn("user", "hello"), Turn("assistant", "one"), Turn("user", "wave"), Turn("assistant", "two"))
    (item,) = report_cards.score(answering, [Conversation(turns, answers=("two",))])
    tok = answering.tokenizer
    assert (item.question, item.em) == ("wave", True)
    assert seen == [[tok.eot, tok.user, *tok.encode("hello"), tok.assistant, *tok.encode("one"), tok.end,
                     tok.user, *tok.encode("wave"), tok.assistant]]  # fmt: skip


@pytest.mark.parametrize(
    ("number", "answer", "right"),
    [
        (0, "The capital of France is Paris.", True),
        (0, "Parisian food is good.", False),
        (1, "There are eight planets in our solar system.", True),
        (1, "There are 18 planets.", False),
        (2, '"1984" was written by George Orwell.', True),
        (3, "Light travels at 299,792,458 metres per second.", True),
        (3, "about 300,000 kilometres per second", True),
        (4, "I don't know.", True),
        (4, "I don't know, perhaps George Washington.", False),
        (4, "", False),
        (0, "London " * 20 + "Paris", False),  # naming everything is no answer
    ],
)
def test_the_five_questions_accept_sentences(number: int, answer: str, right: bool) -> None:
    assert report_cards._contains(answer, report_cards.FIVE_QUESTIONS[number][1]) is right


# --- the report card


FACTS = {"France": "Paris", "Norway": "Oslo", "Italy": "Rome", "Japan": "Tokyo"}


def _qa_records() -> Iterator[Conversation]:
    for split, wording in (("train", "capital of {}?"), ("train", "{} capital?"), ("wording", "Which city leads {}?")):
        for country, city in FACTS.items():
            yield _conversation(wording.format(country), f"It is {city}.", city, split=split)
    for split, question in (
        ("train", "Who won?"),
        ("train", "Who is late?"),
        ("train", "Who sang?"),
        ("wording", "Who is | here?"),
    ):
        yield _conversation(question, IDK, skill="unknown", split=split)
    for split, hero in (("train", "fox"), ("val", "hen")):
        yield _conversation(f"a {hero} story", f"Once a {hero} ran home and was happy.", skill="stories", split=split)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project folder with a corpus, questions, and untrained models for both stages of run `r`."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_HOME", str(folder))
        text = "\n".join(f"{city} is the capital of {country}." for country, city in FACTS.items())
        (folder / "cities.txt").write_text(f"{text}\n" * 40, encoding="utf-8")
        records = "".join(json.dumps(to_record(conv)) + "\n" for conv in _qa_records())
        (folder / "asked.jsonl").write_text(records, encoding="utf-8")
        corpus = corpus_files.prepare_corpus(str(folder / "cities.txt"), "bpe:300")
        questions = corpus_files.prepare_qa(str(folder / "asked.jsonl"), corpus.tokenizer, 64)
        torch.manual_seed(1)
        model = GPT(ModelConfig(corpus.tokenizer.vocab_size, 64, n_layer=1, n_head=2, n_embd=16))
        torch.nn.init.normal_(model.lm_head.weight)
        meta = {"run": "r", "model_name": "tiny", "corpus": corpus.name, "step": 7}
        base = {"stage": "base_model", "data_fingerprint": corpus.meta["source_fingerprint"]}
        tuned = {"stage": "fine_tuned", "data_fingerprint": questions.meta["source_fingerprint"]}
        tuned["qa"] = str(folder / "asked.jsonl")
        for stage in (base, tuned):
            checkpoint.save(paths.checkpoint_path("r", stage["stage"]), model, corpus.tokenizer, meta | stage)
        yield folder


def test_training_pairs_are_the_last_questions_with_their_answers(home: Path) -> None:
    data = qa.load_qa(home / "data" / "asked_qa")
    tok = corpus_files.load_corpus(home / "data" / "cities").tokenizer
    expected = [(conv.question, conv.answer) for conv in _qa_records() if conv.split == "train"]
    assert baselines.training_pairs(data, tok) == expected


def test_report_card_measures_everything_and_is_json(home: Path) -> None:
    card = report_cards.report_card("r", stage="fine_tuned")
    assert json.loads(json.dumps(card)) == card
    assert (card["run"], card["stage"], card["notes"]) == ("r", "fine_tuned", [])
    bits = card["bits_per_byte"]
    assert set(bits) == {"model", "uniform", "unigram", "bigram"}
    assert bits["bigram"] < bits["unigram"] < bits["uniform"] < bits["model"]  # random weights know nothing
    rows = {(row["split"], row["skill"]): row for row in card["scores"]}
    assert rows["wording", "all"]["n"] == 5
    assert rows["wording", "facts"]["nearest_em"] == 1.0  # the name of the country finds it
    assert rows["wording", "facts"]["majority_em"] == 0.0
    assert rows["wording", "unknown"]["majority_em"] == 1.0
    assert card["majority_answer"] == IDK
    assert rows["val", "stories"]["em"] is None
    writing = card["writing"]
    assert writing["asked"].startswith("stories")
    assert writing["n"] == len(report_cards.HEROES)
    assert [item["question"] for item in card["five_questions"]] == [q for q, _ in report_cards.FIVE_QUESTIONS]
    assert len(card["samples"]["wrong"]) == 5
    assert card["samples"]["right"] == []


def test_texts_that_end_before_their_limit_are_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = itertools.cycle([report_cards.TEXT_TOKENS, 3, report_cards.TEXT_TOKENS - 1, report_cards.TEXT_TOKENS])
    monkeypatch.setattr(report_cards, "generate", lambda model, prompts, **_: [[65] * next(lengths) for _ in prompts])
    loaded = checkpoint.load(paths.checkpoint_path("r", "fine_tuned"))
    written = report_cards._writing(loaded, stories=True, training=[], seed=0)
    expected = sum(n % 4 in (1, 2) for n in range(len(report_cards.HEROES))) / len(report_cards.HEROES)
    assert written["stop_rate"] == expected


def test_report_card_asks_at_most_so_many_of_each_kind_and_is_repeatable(home: Path) -> None:
    card = report_cards.report_card("r", stage="fine_tuned", limit_per_split=2, seed=3)
    assert {(row["split"], row["skill"]): row["n"] for row in card["scores"]} == {
        ("val", "stories"): 1, ("wording", "facts"): 2, ("wording", "unknown"): 1, ("wording", "all"): 3,
    }  # fmt: skip
    assert report_cards.report_card("r", stage="fine_tuned", limit_per_split=2, seed=3) == card


def test_base_model_is_asked_what_its_finetuned_model_is_asked(home: Path) -> None:
    base, tuned = (report_cards.report_card("r", stage=stage) for stage in ("base_model", "fine_tuned"))
    assert base["scores"] == tuned["scores"]  # the same weights here


def test_report_card_says_what_it_could_not_measure(nanochat_home: Path) -> None:
    tiny.tiny_checkpoint(nanochat_home)
    card = report_cards.report_card("tiny")
    assert (card["bits_per_byte"], card["scores"], card["questions"], card["corpus"]) == (None, [], None, None)
    assert len(card["notes"]) == 2
    assert all("prepare" in note for note in card["notes"])
    assert "No bits per byte" in report_cards.format_card(card)


def test_report_card_says_that_questions_changed_since_training(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = checkpoint.load(paths.checkpoint_path("r", "fine_tuned"))
    changed = {**trained.meta, "data_fingerprint": "0123456789abcdef"}
    monkeypatch.setattr(
        report_cards.loading, "load", lambda *_: checkpoint.Checkpoint(trained.model, trained.tokenizer, changed, home)
    )
    (note,) = report_cards.report_card("r")["notes"]
    assert "0123456789abcdef" in note and "held out" in note


def test_questions_prepared_for_another_tokenizer_are_prepared_again(home: Path) -> None:
    before = report_cards.report_card("r", stage="fine_tuned")
    other = tiny.tiny_model()[1]
    corpus_files.prepare_qa(str(home / "asked.jsonl"), other, 64)
    assert report_cards.report_card("r", stage="fine_tuned") == before


@pytest.mark.parametrize("content", ["", "no JSON", "[]", "{}", '{"tokenizer_fingerprint": 1', b"\xff\xfe"])
def test_another_set_whose_meta_is_damaged_changes_nothing(home: Path, content: str | bytes) -> None:
    before = report_cards.report_card("r", stage="fine_tuned")
    other = home / "data" / "other_qa"
    other.mkdir(exist_ok=True)
    (other / "qa_val.jsonl").touch()
    (other / "meta.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    try:
        assert report_cards.report_card("r", stage="fine_tuned") == before
    finally:
        shutil.rmtree(other)


def test_card_reads_as_markdown_tables(home: Path) -> None:
    text = report_cards.format_card(report_cards.report_card("r", stage="fine_tuned"))
    for heading in ("Predicting text of cities", "Answering held-out questions of asked", "Five questions: "):
        assert f"\n### {heading}" in text
    assert "Who is \\| here?" in text
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4
    assert "wording: what was trained, in new words." in text
    for lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


@given(st.text(max_size=40))
def test_no_text_breaks_out_of_its_cell(text: str) -> None:
    lines = card_text._table(("a", "b:"), [(text, text)]).splitlines()
    assert len(lines) == 3
    assert lines[2].replace("\\|", "").count("|") == 3


@given(st.text(max_size=40) | st.text("$\\()[]&#36;<span>/ ", max_size=40))
def test_a_cell_shows_its_text_and_none_of_it_is_latex(text: str) -> None:
    cell = card_text._cell(text)
    assert "$" not in cell and "$" not in html.unescape(cell).replace("<span>$</span>", "")
    plain = re.sub(r"\\(.)", r"\1", cell)  # the markdown's own backslashes
    assert html.unescape(re.sub("</?span>", "", plain)) == " ".join(text.split())


@given(st.text(max_size=40) | st.text("$\\()[]&#36;<span>|*`/ ", max_size=40))
def test_a_terminal_shows_the_text_of_a_cell_as_it_is(text: str) -> None:
    assert card_text.plain(card_text._cell(text)) == " ".join(text.split())


def test_a_price_in_a_card_is_no_latex(home: Path) -> None:
    card = report_cards.report_card("r", stage="fine_tuned")
    card["five_questions"][0]["answer"] = card["majority_answer"] = card["writing"]["sample"] = "$31 or \\(135\\)"
    text = report_cards.format_card(card)
    assert "$" not in text and "\\(" not in text and text.count("&#36;") == 3


def test_cards_of_seeds_are_compared_by_mean_lowest_and_highest() -> None:
    def card(em: float, bits: float) -> dict:
        rows = [{"split": "wording", "skill": "facts", "em": em}, {"split": "val", "skill": "stories", "em": None}]
        return {"bits_per_byte": {"model": bits}, "scores": rows}

    empty = {"bits_per_byte": None, "scores": []}
    text = report_cards.compare_cards(
        {"base": [card(0.1, 1.5)], "tuned": [card(0.8, 1.25), card(0.9, 1.75)], "no": [empty]}
    )
    assert text.splitlines() == [
        "| split | skill | base | tuned | no |",
        "| --- | --- | ---: | ---: | ---: |",
        "| all text | bits per byte | 1.500 | 1.500 (1.250 to 1.750) | – |",
        "| wording | facts | 10.0 % | 85.0 % (80.0 % to 90.0 %) | – |",
    ]
