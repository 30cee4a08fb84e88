"""The terminal chat, driven by lines of text."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from tiny import ANSWERS, tiny_checkpoint

from nanochat import loading
from nanochat.chat import reply
from nanochat.chat.session import ChatSession
from nanochat.chat.terminal import HELP, run_terminal
from nanochat.config import UserError


def open_session(run: str | None, stage: str | None) -> ChatSession:
    return ChatSession(loading.load(run, stage, device="cpu"))


@pytest.fixture
def talk(nanochat_home: Path):
    """Type the lines; returns what the screen shows."""
    tiny_checkpoint(nanochat_home)
    tiny_checkpoint(nanochat_home, stage="base_model")

    def talk(*lines: str) -> str:
        screen = io.StringIO()
        assert run_terminal(open_session, io.StringIO("".join(f"{line}\n" for line in lines)), screen) == 0
        return screen.getvalue()

    return talk


@pytest.fixture
def records():
    from nanochat import paths
    from nanochat.chat import feedback

    return lambda: feedback.read(paths.feedback_path("tiny"))


def test_questions_are_answered_and_the_end_is_polite(talk):
    screen = talk("hello", "", "/new", "wave", "/quit", "never read")
    assert f"bot: {ANSWERS['hello']}\n" in screen and f"bot: {ANSWERS['wave']}\n" in screen
    assert screen.endswith("Goodbye, and thank you for the conversation.\n")


def test_the_end_of_the_input_is_the_end_of_the_chat(talk):
    assert talk().endswith("Goodbye, and thank you for the conversation.\n")


def test_answers_are_shown_piece_by_piece(nanochat_home: Path):
    tiny_checkpoint(nanochat_home)
    written = []

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            written.append(text)
            return len(text)

    run_terminal(open_session, io.StringIO("hello\n"), Screen())
    assert ANSWERS["hello"] not in written and ANSWERS["hello"] in "".join(written)


def test_ctrl_c_stops_the_answer_and_not_the_program(nanochat_home: Path):
    tiny_checkpoint(nanochat_home)

    class Screen(io.StringIO):
        def write(self, text: str) -> int:
            before = self.getvalue()
            if before.endswith("bot: one"):
                signal.raise_signal(signal.SIGINT)
            return super().write(text)

    screen = Screen()
    assert run_terminal(open_session, io.StringIO("count\n/new\nhello\n"), screen) == 0
    assert " (stopped)\n" in screen.getvalue() and "sixteen" not in screen.getvalue()
    assert ANSWERS["hello"] in screen.getvalue()


def test_ctrl_c_at_the_prompt_says_how_to_leave(nanochat_home: Path):
    tiny_checkpoint(nanochat_home)

    class Keyboard(io.StringIO):
        def readline(self, *args) -> str:
            line = super().readline()
            if line == "^C\n":
                raise KeyboardInterrupt
            return line

    screen = io.StringIO()
    assert run_terminal(open_session, Keyboard("^C\nhello\n"), screen) == 0
    assert "/quit leaves" in screen.getvalue() and ANSWERS["hello"] in screen.getvalue()


def test_help_lists_every_command_and_every_listed_one_exists(talk):
    screen = talk("/help", *(entry.split()[0] for entry in HELP if entry != "/quit"))
    assert all(entry in screen for entry in HELP)
    assert "went wrong" not in screen and "unknown" not in screen


def test_an_unknown_command_names_the_nearest(talk):
    assert "did you mean '/rate'" in talk("/rat 5")


COMMANDS = [entry.split()[0] for entry in HELP]


@pytest.mark.parametrize(
    "words", ["", " now", "\tnow", " \x00", " " + "9" * 5000, " 1e999", " nan", " ../x", " \udce9"]
)
def test_no_command_ends_the_chat_whatever_stands_behind_it(talk, words: str):
    for command in [*COMMANDS, "/", "//", "/QUIT", "/do_help", "/_quit", "/é"]:
        if command + words != "/quit":
            screen = talk(f"{command}{words}", "", "/new", "/passage", "/temp 0", "hello")
            assert f"bot: {ANSWERS['hello']}\n" in screen and "went wrong" not in screen


@pytest.mark.parametrize("command", [entry for entry in HELP if " " not in entry])
def test_a_command_that_takes_no_words_says_so(talk, command: str):
    assert f"({command} takes no words after it; type {command} alone)" in talk("hello", f"{command} now")


def test_an_error_nobody_thought_of_is_shown_and_the_chat_goes_on(talk, monkeypatch):
    monkeypatch.setattr(ChatSession, "new", lambda self: [][0])
    screen = talk("/new", "hello")
    assert "(sorry, that went wrong: IndexError: " in screen and ANSWERS["hello"] in screen


def test_ratings_thumbs_comments_and_corrections_reach_the_feedback(talk, records):
    screen = talk("hello", "/rate 4", "/rate +", "/rate -", "/comment so so", "/correct Hello you!")
    assert [(r.kind, r.value, r.text) for r in records()] == [
        ("rating", 4, ""), ("thumb", 1, ""), ("thumb", -1, ""), ("comment", None, "so so"),
        ("correction", None, "Hello you!"),
    ]  # fmt: skip
    assert screen.count("thank you)") == 5


@pytest.mark.parametrize("rating", ["6", "0", "five", "", "²"])
def test_an_invalid_rating_is_asked_for_again_and_the_answer_kept(talk, records, rating: str):
    screen = talk("hello", f"/rate {rating}", "/rate 3")
    assert "1, 2, 3, 4, 5" in screen and [r.value for r in records()] == [3]


def test_rating_before_any_answer_is_one_sentence(talk, records):
    assert "(there is no answer yet; ask something first)" in talk("/rate 5") and records() == []


def test_compare_asks_until_it_is_told_which_is_better(talk, records):
    screen = talk("/temp 2", "/compare hello", "both", "b")
    assert "A: " in screen and "B: " in screen and screen.count("Which is better") == 2
    assert [(r.kind, r.value) for r in records()] == [("choice", 1)]


def test_compare_can_be_left_undecided(talk, records):
    assert ANSWERS["wave"] in talk("/temp 2", "/compare hello", "", "/new", "/temp 0", "wave") and records() == []


def test_another_stage_or_run_takes_over_the_conversation(talk, nanochat_home: Path):
    tiny_checkpoint(nanochat_home, "second")
    screen = talk(
        "/model tiny", "/stage base_model", "/model tiny", "/model nobody", "/model", "/stage nowhere", "hello"
    )
    assert "base model: it continues texts" in screen
    assert "no trained model of run 'nobody'" in screen and "* tiny (fine_tuned)" in screen
    assert "unknown stage 'nowhere'" in screen and ANSWERS["hello"] in screen


def test_the_temperature_can_be_set_and_nonsense_is_refused(talk):
    screen = talk("/temp 0.5", "/temp warm", "/temp -1", "/temp")
    assert screen.count("(temperature 0.5)") == 2 and "not 'warm'" in screen and "0 (greedy) or above" in screen


def test_a_passage_goes_with_the_questions_until_it_is_put_away(talk, records):
    talk("/passage A text.", "hello", "/rate +", "/passage", "hello", "/rate +")
    assert [r.conversation.context for r in records()] == ["A text.", ""]


def test_an_error_of_the_model_is_shown_and_the_chat_goes_on(talk, monkeypatch):
    real = reply.stream

    def fragile(model, prompt, **sampling):
        if len(prompt) > 20:
            raise RuntimeError("out of memory")
        yield from real(model, prompt, **sampling)

    monkeypatch.setattr(reply, "stream", fragile)
    screen = talk("hello hello hello hello hello hello hello", "hello")
    assert "sorry, that went wrong: RuntimeError: out of memory" in screen and ANSWERS["hello"] in screen


def test_a_model_cannot_send_control_characters_to_the_terminal(talk, monkeypatch):
    monkeypatch.setattr(reply, "stream", lambda model, prompt, **sampling: iter(b"\x1b[2J\x07beep"))
    monkeypatch.setattr("nanochat.tokenizer.Tokenizer.token_bytes", lambda self, id: bytes([id]))
    screen = talk("hello")
    assert "[2Jbeep" in screen and "\x1b" not in screen and "\x07" not in screen


def test_a_terminal_of_few_characters_shows_question_marks(nanochat_home: Path):
    tiny_checkpoint(nanochat_home)
    raw = io.BytesIO()
    screen = io.TextIOWrapper(raw, encoding="ascii")
    assert run_terminal(open_session, io.StringIO("wave\n"), screen) == 0
    assert b"bot: Hi ??" in raw.getvalue()


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_letters_of_another_encoding_are_no_error(nanochat_home: Path, records, errors: str):
    tiny_checkpoint(nanochat_home)
    keyboard = io.TextIOWrapper(io.BytesIO(b"caf\xe9?\n/comment caf\xe9\n/new\nhello\n"), "utf-8", errors)
    screen = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    assert run_terminal(open_session, keyboard, screen) == 0
    shown = screen.buffer.getvalue().decode()
    assert f"bot: {ANSWERS['hello']}\n" in shown and "went wrong" not in shown
    [record] = records()
    assert (record.conversation.question, record.text) == ("caf\ufffd?", "caf\ufffd")


def test_without_a_model_the_caller_is_told(nanochat_home: Path):
    with pytest.raises(UserError, match="nanochat course"):
        run_terminal(open_session, io.StringIO(), io.StringIO())
