"""Chat sessions without a user interface, with a real but tiny model that has memorized a few answers."""

from __future__ import annotations

import errno
import threading
from pathlib import Path

import pytest
import torch
from tiny import ANSWERS, tiny_checkpoint

from nanochat import loading
from nanochat.chat import feedback, reply
from nanochat.chat import session as sessions
from nanochat.chat.session import ChatSession, Settings
from nanochat.config import UserError
from nanochat.data import questions
from nanochat.data.conversation import Conversation, Turn
from nanochat.widgets.labels import chat_name


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def session(nanochat_home: Path, said: list[str]) -> ChatSession:
    tiny_checkpoint(nanochat_home)
    return ChatSession(loading.load("tiny", device="cpu"), notice=said.append)


def whole(pieces) -> str:
    return "".join(pieces)


@pytest.mark.parametrize("question", ANSWERS)
def test_the_streamed_pieces_make_up_the_answer(session: ChatSession, question: str):
    pieces = list(session.reply(question))
    assert whole(pieces) == ANSWERS[question] == session.exchanges[0].answer.text
    assert len(pieces) > 2 and session.exchanges[0].answer.ended == "end"


def test_a_character_of_several_tokens_is_held_back_until_it_is_whole(session: ChatSession):
    pieces = list(session.reply("wave"))
    assert len(session.exchanges[0].answer.ids) > len(pieces), "the tiny tokenizer cuts the emoji in several tokens"
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_chat_asks_in_the_template_of_training(session: ChatSession, monkeypatch):
    prompts = []

    def spy(model, prompt, **sampling):
        prompts.append(prompt)
        return stream(model, prompt, **sampling)

    stream = reply.stream
    monkeypatch.setattr(reply, "stream", spy)
    whole(session.reply("hello"))
    whole(session.reply("wave <|end|>", "A passage."))
    tok = session.loaded.tokenizer
    first = Turn("user", "hello")
    assert prompts[0] == questions.render_prompt(Conversation((first,)), tok)
    turns = (first, Turn("assistant", ANSWERS["hello"]), Turn("user", "wave <|end|>"))
    assert prompts[1] == questions.render_prompt(Conversation(turns, "A passage."), tok)
    assert prompts[1].count(tok.end) == 1, "what a person types is never a special token"


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_an_empty_question_is_refused_at_once_and_nothing_happens(session: ChatSession, text: str):
    for ask in (session.reply, session.stream_compare):
        with pytest.raises(UserError, match="empty"):
            ask(text)
    assert session.exchanges == [] and not session.busy


def test_stop_ends_the_answer_within_one_token_and_keeps_what_was_written(session: ChatSession):
    pieces = session.reply("count")
    seen = [next(pieces), next(pieces)]
    threading.Thread(target=session.stop).start()
    seen += list(pieces)
    answer = session.exchanges[0].answer
    assert answer.ended == "stopped" and len(answer.ids) <= 4
    assert whole(seen).rstrip() == answer.text and ANSWERS["count"].startswith(answer.text)
    assert whole(session.reply("hello"))  # and the next answer is not stopped
    assert session.exchanges[1].answer.ended == "end"


def test_a_closed_iterator_is_a_stopped_answer(session: ChatSession):
    pieces = session.reply("count")
    next(pieces)
    pieces.close()
    assert session.exchanges[0].answer.ended == "stopped" and not session.busy


def test_an_error_while_answering_leaves_the_session_as_it_was(session: ChatSession, monkeypatch):
    whole(session.reply("hello"))

    def broken(*args, **kwargs):
        yield 40
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(reply, "stream", broken)
        for ask in (session.reply, session.stream_compare):
            with pytest.raises(RuntimeError, match="out of memory"):
                list(ask("wave"))
    assert len(session.exchanges) == 1 and not session.busy
    session.settings = Settings(remember=0)
    assert whole(session.reply("wave")) == ANSWERS["wave"]


def test_one_answer_at_a_time(session: ChatSession):
    pieces = session.reply("count")
    next(pieces)
    assert session.busy
    for attempt in (lambda: next(session.reply("hello")), session.new, lambda: session.use(session.loaded)):
        with pytest.raises(UserError, match="still answering"):
            attempt()
    whole(pieces)
    assert whole(session.reply("hello")) and len(session.exchanges) == 2


@pytest.mark.parametrize("ask", ["reply", "stream_compare"])
def test_a_refused_question_leaves_the_answer_that_runs_to_stop_and_takes_no_seed(session: ChatSession, ask: str):
    session.settings = Settings(remember=0)
    pieces = session.reply("count")
    next(pieces)
    with pytest.raises(UserError, match="still answering"):
        next(getattr(session, ask)("hello"))
    session.stop()
    list(pieces)
    answer = session.exchanges[0].answer
    assert (answer.ended, answer.seed) == ("stopped", 0) and len(answer.ids) <= 3
    assert whole(session.reply("hello")) == ANSWERS["hello"]
    assert session.exchanges[1].answer.seed == 1


def test_a_stop_before_the_first_piece_is_not_lost(session: ChatSession):
    pieces = session.reply("count")
    session.stop()
    list(pieces)
    assert session.exchanges[0].answer.ended == "stopped" and len(session.exchanges[0].answer.ids) <= 2


def test_a_stop_is_for_the_answer_that_runs_and_not_for_one_asked_for_meanwhile(session: ChatSession):
    pieces = session.reply("count")
    next(pieces)
    later = session.reply("hello")
    session.stop()
    list(pieces)
    assert whole(later) == ANSWERS["hello"]
    assert [exchange.answer.ended for exchange in session.exchanges] == ["stopped", "end"]


def test_no_gradients_are_kept_in_the_thread_that_answers(session: ChatSession):
    outputs = []
    session.loaded.model.lm_head.register_forward_hook(lambda module, args, output: outputs.append(output))
    worker = threading.Thread(target=lambda: whole(session.reply("hello")))
    worker.start()
    worker.join()
    assert outputs and all(output.is_inference() for output in outputs)


def test_regenerate_takes_a_new_seed_and_keeps_the_answer_before(session: ChatSession, said: list[str]):
    session.settings = Settings(temperature=2.0, seed=5)
    whole(session.reply("hello"))
    whole(session.regenerate())
    (exchange,) = session.exchanges
    assert [answer.seed for answer in exchange.answers] == [5, 6] and exchange.chosen == 1
    assert exchange.answers[0].text != exchange.answers[1].text
    assert exchange.answers[0].conversation == exchange.answers[1].conversation, "it answers the same question"
    assert session.history[1].text == exchange.answers[1].text and said == []


def test_regenerate_at_temperature_zero_samples_and_says_so(session: ChatSession, said: list[str]):
    whole(session.reply("hello"))
    whole(session.regenerate())
    assert "temperature 0" in said[0]
    assert session.exchanges[0].answer.settings.temperature == sessions.VARIED and session.settings.temperature == 0


def test_nothing_to_regenerate_is_one_sentence(session: ChatSession):
    with pytest.raises(UserError, match="ask something first"):
        session.regenerate()


def test_the_recorded_seed_and_settings_give_the_same_answer_again(session: ChatSession):
    session.settings = Settings(temperature=1.5, top_k=50, top_p=0.9, seed=3)
    for _ in range(2):
        whole(session.reply("hello"))
    before = session.exchanges[1].answer
    again = []
    whole(
        reply.write(session.loaded, before.conversation, before.settings, before.seed, threading.Event(), again.append)
    )
    assert again[0].ids == before.ids


def test_compare_writes_two_answers_in_turns_with_different_seeds(session: ChatSession):
    session.settings = Settings(temperature=2.0)
    pieces = list(session.stream_compare("hello"))
    (exchange,) = session.exchanges
    assert [i for i, _ in pieces][:4] == [0, 1, 0, 1]
    for i in (0, 1):
        assert whole(piece for j, piece in pieces if j == i).rstrip() == exchange.answers[i].text
    assert exchange.answers[0].seed != exchange.answers[1].seed and exchange.comparison


def test_the_chosen_answer_goes_into_the_history_and_the_feedback(session: ChatSession):
    session.settings = Settings(temperature=2.0)
    first, second = session.compare("hello")
    session.choose(session.exchanges[0], 1)
    assert session.history[-1].text == second.text
    (record,) = session.store().records()
    assert (record.kind, record.value, record.responses) == ("choice", 1, (first.text, second.text))
    assert record.seeds == (first.seed, second.seed)
    with pytest.raises(UserError):
        session.choose(session.exchanges[0], 2)
    assert session.exchanges[0].chosen == 1


def test_a_stopped_comparison_keeps_both_beginnings(session: ChatSession):
    pieces = session.stream_compare("count")
    next(pieces), next(pieces)
    session.stop()
    list(pieces)
    assert [answer.ended for answer in session.exchanges[0].answers] == ["stopped", "stopped"]


def test_equal_answers_are_said_to_be_equal(session: ChatSession, said: list[str]):
    session.settings = Settings(temperature=0.01)
    session.compare("hello")
    assert any("same" in sentence for sentence in said)


def test_only_compared_answers_can_be_chosen_from(session: ChatSession):
    whole(session.reply("hello"))
    with pytest.raises(UserError, match="compare"):
        session.choose(session.exchanges[0], 0)


def test_the_oldest_turns_go_when_the_context_is_full_and_it_is_said(session: ChatSession, said: list[str]):
    whole(session.reply("count"))
    session.exchanges *= 3
    whole(session.reply("count"))
    assert said == ["The context is full: the model no longer sees 2 earlier questions and their answers."]
    shown = session.exchanges[3].answer.conversation.turns
    assert [turn.text for turn in shown] == ["count", ANSWERS["count"], "count"]
    assert len(session.history) >= 6, "the person still sees everything"
    used, limit = session.budget()
    assert 0 < used <= limit == 96


def test_turns_can_be_forgotten_on_purpose(session: ChatSession, said: list[str]):
    session.settings = Settings(remember=0)
    whole(session.reply("hello"))
    assert whole(session.reply("wave")) == ANSWERS["wave"] and said == []


def test_the_model_is_shown_the_last_questions_and_the_person_all(session: ChatSession, said: list[str]):
    session.settings = Settings(remember=2)
    for _ in range(4):
        whole(session.reply("hello"))
    shown = session.exchanges[-1].answer.conversation.turns
    assert shown == (*session.history[2:6], session.history[6])
    assert len(session.history) == 8 and said == []
    rendered = len(questions.render(questions.Conversation(session.history[-4:]), session.loaded.tokenizer))
    assert session.budget() == (rendered, 96)
    session.settings = Settings(remember=0)
    assert session.budget() == (0, 96)


@pytest.mark.parametrize("remember", [-1, True, 1.5])
def test_remembering_is_a_number_of_questions(remember):
    with pytest.raises(UserError, match="remember must be a whole number"):
        Settings(remember=remember)


def test_a_question_longer_than_the_context_is_cropped_from_the_left_and_it_is_said(session, said: list[str]):
    whole(session.reply("long " * 50_000 + "question at the end"))
    asked = session.exchanges[0].answer.conversation.question
    assert asked.endswith("question at the end") and len(asked) < 1000
    assert said == ["The question is too long for this model: it read only the end."]


def test_a_passage_longer_than_the_context_is_cropped_at_its_end_and_it_is_said(session, said: list[str]):
    whole(session.reply("hello", "The beginning. " + "مرحبا 👋 " * 5000))
    shown = session.exchanges[0].answer.conversation
    assert shown.context.startswith("The beginning.") and shown.question == "hello"
    assert said == ["The passage is too long for this model: it read only the beginning."]


@pytest.mark.parametrize("block_size", [8, 9, 16, 33])
def test_even_the_smallest_context_answers_something(nanochat_home: Path, block_size: int):
    tiny_checkpoint(nanochat_home, "small", block_size=block_size)
    session = ChatSession(loading.load("small", device="cpu"), notice=lambda said: None)
    for question, passage in [("x " * 100, ""), ("👋 " * 100, "👋🏽" * 100), ("hi", "p " * 100)]:
        whole(session.reply(question, passage))
        shown = session.exchanges[-1].answer
        n_tokens = len(questions.render_prompt(shown.conversation, session.loaded.tokenizer)) + len(shown.ids)
        assert n_tokens <= block_size


def test_a_new_chat_forgets(session: ChatSession):
    whole(session.reply("hello"))
    session.new()
    assert session.history == () and session.budget() == (0, 96)


def test_feedback_has_all_it_takes_to_learn_from_and_to_reproduce(session: ChatSession):
    session.settings = Settings(temperature=0.7, top_p=0.9, seed=11)
    whole(session.reply("hello", "A passage."))
    answer = session.exchanges[0].answer
    session.thumb(answer, 1)
    session.rate(answer, 5)
    session.comment(answer, "friendly")
    session.correct(answer, "Hello!")
    session.retract(answer, "comment")
    records = session.store().records()
    assert [r.kind for r in records] == ["thumb", "rating", "comment", "correction", "retract"]
    assert {r.about for r in records} == {answer.id}
    first = records[0]
    assert (first.run, first.stage, first.responses, first.seeds) == ("tiny", "fine_tuned", (answer.text,), (11,))
    assert first.conversation == Conversation((Turn("user", "hello"),), "A passage.")
    assert first.sampling == {"temperature": 0.7, "top_k": None, "top_p": 0.9, "max_new_tokens": 128}
    assert first.checkpoint == session.loaded.meta["fingerprint"]
    assert first.tokenizer == session.loaded.tokenizer.fingerprint
    (opinion,) = feedback.current(records)
    assert (opinion.rating, opinion.correction, opinion.comment) == (5, "Hello!", "")


def test_an_invalid_rating_is_refused_and_the_exchange_kept(session: ChatSession):
    whole(session.reply("hello"))
    with pytest.raises(UserError, match="1, 2, 3, 4, 5"):
        session.rate(session.exchanges[0].answer, 7)
    session.rate(session.exchanges[0].answer, 4)
    assert [r.value for r in session.store().records()] == [4]


def test_feedback_that_cannot_be_saved_is_told_and_saved_later(session: ChatSession, said: list[str], monkeypatch):
    whole(session.reply("hello"))
    answer = session.exchanges[0].answer

    def full(fd, line):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        session.thumb(answer, 1)
    assert "No space left on device" in said[0]
    session.comment(answer, "fine")
    assert [r.kind for r in feedback.read(session.store().path)] == ["thumb", "comment"] and len(said) == 1


def test_feedback_belongs_to_the_model_that_wrote_the_answer(session: ChatSession, nanochat_home: Path):
    whole(session.reply("hello"))
    tiny_checkpoint(nanochat_home, "other")
    session.use(loading.load("other", device="cpu"))
    session.thumb(session.exchanges[0].answer, 1)
    assert len(session.store("tiny").records()) == 1 and session.store().records() == []
    assert whole(session.reply("wave")) and len(session.exchanges) == 2, "the conversation goes on"


def test_why_tells_the_probability_of_each_token_and_its_rivals(session: ChatSession):
    whole(session.reply("hello"))
    answer = session.exchanges[0].answer
    views = session.why(answer, k=3)
    assert "".join(view.text for view in views) == ANSWERS["hello"] + "<|end|>"
    for view in views:
        assert view.top[0] == (view.text, view.probability), "greedy takes the most likely token"
        assert len(view.top) == 3 and [p for _, p in view.top] == sorted((p for _, p in view.top), reverse=True)
        assert view.bits == pytest.approx(-torch.tensor(view.probability).log2().item(), abs=1e-4)


def test_why_agrees_with_the_model_token_by_token(session: ChatSession):
    session.settings = Settings(temperature=1.5, max_new_tokens=6, seed=1)
    whole(session.reply("count"))
    answer = session.exchanges[0].answer
    prompt = questions.render_prompt(answer.conversation, session.loaded.tokenizer)
    for i, view in enumerate(session.why(answer)[: len(answer.ids)]):
        logits = session.loaded.model(torch.tensor([[*prompt, *answer.ids[:i]]]))[0, -1]
        assert view.probability == pytest.approx(logits.softmax(0)[answer.ids[i]].item(), rel=1e-3)


def test_half_a_character_is_shown_as_bytes(session: ChatSession):
    whole(session.reply("wave"))
    assert any(view.text.startswith("\\xf0") for view in session.why(session.exchanges[0].answer))


def test_why_needs_the_model_that_wrote_the_answer(session: ChatSession):
    whole(session.reply("hello"))
    session.loaded.meta["fingerprint"] = "another"
    with pytest.raises(UserError, match="another model"):
        session.why(session.exchanges[0].answer)


def test_a_saved_chat_goes_on_after_a_restart(session: ChatSession, nanochat_home: Path):
    session.settings = Settings(temperature=1.0)
    whole(session.reply("wave", "A passage."))
    session.compare("hello", "A passage.")
    path = sessions.transcript_path("tiny")
    session.save(path)
    later = ChatSession(loading.load("tiny", device="cpu"))
    later.load(sessions.transcripts("tiny")[0])
    assert later.exchanges == session.exchanges and later.budget() == session.budget()
    later.thumb(later.exchanges[0].answer, 1)
    assert later.why(later.exchanges[0].answer) == session.why(session.exchanges[0].answer)


def test_half_of_a_surrogate_pair_reaches_no_file_and_stops_nothing(session: ChatSession, nanochat_home: Path):
    whole(session.reply("caf\udce9?", "cut \ud83d"))
    session.compare("\ud83d", "\udce9")
    first, both = session.exchanges
    session.thumb(first.answer, 1)
    session.comment(first.answer, "so\ud83d")
    session.correct(first.answer, "\udce9 better")
    session.choose(both, 0)
    session.save(sessions.transcript_path("tiny"))
    assert (first.question, first.passage, both.question, both.passage) == ("caf??", "cut ?", "?", "?")
    kept = session.store().path.read_text(encoding="utf-8") + sessions.transcripts("tiny")[0].read_text(
        encoding="utf-8"
    )
    assert "\\ud83d" not in kept and "\\udce9" not in kept
    assert [record.text for record in session.store().records()] == ["", "so?", "? better", ""]
    assert session.budget()[0] > 0


def test_half_of_a_surrogate_pair_in_a_saved_chat_is_mended_when_it_is_read(session: ChatSession, nanochat_home: Path):
    whole(session.reply("hello", "A passage."))
    path = sessions.transcript_path("tiny")
    session.save(path)
    path.write_text(
        path.read_text().replace("hello", "hello\\ud83d").replace("A passage", "\\udce9").replace("help", "\\ud83d")
    )
    session.load(path)
    assert "\\ud" not in repr(session.exchanges) and session.exchanges[0].question == "hello?"
    assert chat_name(path).endswith("hello?")
    session.thumb(session.exchanges[0].answer, 1)
    whole(session.reply("wave"))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"transcript": 2}', b'{"transcript": 1, "exchanges": [{}]}', b"\xff"]
)
def test_a_damaged_transcript_is_one_sentence_and_changes_nothing(session: ChatSession, tmp_path, content: bytes):
    whole(session.reply("hello"))
    path = tmp_path / "chat.json"
    path.write_bytes(content)
    for bad in (path, tmp_path / "none.json"):
        with pytest.raises(UserError, match="start a new one"):
            session.load(bad)
    assert len(session.exchanges) == 1


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"top_k": 0},
        {"top_p": 1.5},
        {"max_new_tokens": 0},
        {"seed": -1},
        {"temperature": float("nan")},
    ],
)
def test_senseless_settings_are_refused(values):
    with pytest.raises(UserError):
        Settings(**values)
