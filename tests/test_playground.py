"""The playground without a browser: what each click does, and that no text of a user or a model is ever run."""

from __future__ import annotations

import errno
import json
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from tiny import ANSWERS, tiny_checkpoint

from nanochat import paths
from nanochat.chat import feedback, reply, session
from nanochat.chat.feedback import Record
from nanochat.chat.session import ChatSession
from nanochat.data.conversation import Conversation, Turn
from nanochat.widgets import markup, playground
from nanochat.widgets.feedback_tab import as_table, summary
from nanochat.widgets.labels import EXAMPLES
from nanochat.widgets.playground import Playground

HOSTILE = """<script>alert(1)</script><img src=x onerror="alert(2)">' " & </div> <|end|> \x00\x1b[2J"""


@pytest.fixture
def app(nanochat_home: Path) -> Playground:
    tiny_checkpoint(nanochat_home)
    return Playground("tiny", device="cpu")


def ask(app: Playground, text: str, press: str = "send") -> None:
    app.message.value = text
    getattr(app, press).click()
    app.wait(60)
    assert not app.busy


def press_enter(app: Playground) -> None:
    app.message._handle_custom_msg({"event": "submit"}, [])
    app.wait(60)


def answer_shown(app: Playground, i: int = -1) -> str:
    return app.views[i].answers[0].bubble.value


def records(run: str = "tiny") -> list[Record]:
    return feedback.read(paths.feedback_path(run))


class Gate:
    """Lets the model write a number of tokens, then blocks it until opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int):
        self.reached, self.open = threading.Event(), threading.Event()
        real = reply.stream

        def stream(*args, **kwargs) -> Iterator[int]:
            for n, token in enumerate(real(*args, **kwargs)):
                if n == tokens:
                    self.reached.set()
                    assert self.open.wait(60)
                yield token

        monkeypatch.setattr(reply, "stream", stream)


def test_send_shows_the_question_and_the_answer_and_empties_the_field(app: Playground):
    ask(app, "hello")
    assert "hello" in app.views[0].question.value and ANSWERS["hello"] in answer_shown(app)
    assert app.message.value == "" and app.status.value == ""
    assert "tokens/s" in app.views[0].answers[0].about.value
    assert re.search(r"Context: \d+ of 96 tokens", app.budget.value)


def test_enter_sends_and_so_does_the_same_text_again(app: Playground):
    for n in (1, 2):
        app.message.value = "hello"
        press_enter(app)
        assert len(app.views) == n


def test_an_answer_is_shown_while_it_is_being_written_and_stop_ends_it(app: Playground, monkeypatch):
    monkeypatch.setattr(sys.modules["nanochat.widgets.playground"], "_FRAME", 0)
    gate = Gate(monkeypatch, tokens=4)
    app.message.value = "count"
    app.send.click()
    assert gate.reached.wait(60)
    assert "nc-writing" in answer_shown(app) and "one" in answer_shown(app)
    assert app.send.disabled and app.compare.disabled and app.new_chat.disabled and not app.stop.disabled
    app.message.value = "impatient"
    press_enter_without_waiting(app)
    assert "still answering" in app.status.value and len(app.views) == 1 and app.message.value == "impatient"
    app.stop.click()
    gate.open.set()
    app.wait(60)
    assert "stopped" in app.views[0].answers[0].about.value and "sixteen" not in answer_shown(app)
    assert "nc-writing" not in answer_shown(app) and not app.send.disabled and app.stop.disabled


def press_enter_without_waiting(app: Playground) -> None:
    app.message._handle_custom_msg({"event": "submit"}, [])


def test_the_screen_is_updated_at_most_fifteen_times_a_second(app: Playground, monkeypatch):
    clock = iter(i / 100 for i in range(100_000))
    module = sys.modules["nanochat.widgets.playground"]
    monkeypatch.setattr(module, "time", type("Clock", (), {"monotonic": staticmethod(lambda: next(clock))}))
    updates = []
    app.message.value = "count"
    monkeypatch.setattr("nanochat.widgets.exchange.AnswerView.write", lambda self, text: updates.append(text))
    app.send.click()
    app.wait(60)
    n_pieces = len(ANSWERS["count"]) / 4
    assert len(updates) < n_pieces / 2  # the clock says that 10 ms pass between two pieces


@pytest.mark.parametrize("where", ["question", "passage", "answer", "comment", "error"])
def test_nothing_that_anybody_writes_is_html(app: Playground, monkeypatch, where: str):
    if where == "answer":
        tok = app.session.loaded.tokenizer
        monkeypatch.setattr(reply, "stream", lambda *args, **kwargs: iter(tok.encode(HOSTILE)))
    if where == "error":

        def broken(*args, **kwargs):
            raise RuntimeError(HOSTILE)
            yield

        monkeypatch.setattr(reply, "stream", broken)
    app.passage.value = HOSTILE if where == "passage" else ""
    ask(app, HOSTILE if where == "question" else "hello")
    if where == "comment":
        app.views[0].answers[0].comment.value = HOSTILE
        app.views[0].answers[0].save.click()
    if where == "answer":
        app.views[0].answers[0].why.click()
    app.feedback.refresh()
    shown = "".join(html.value for html in widgets_of(app) if type(html).__name__ == "HTML")
    body = shown.replace(markup.STYLE, "")
    assert "<script" not in body and "<img" not in body and "\x00" not in body and "\x1b" not in body
    assert "alert(1)" in body, "it is shown, not left out"
    assert set(re.findall(r"<([a-z]+)", body)) <= {"div", "span", "table", "thead", "tbody", "tr", "th", "td", "br"}


def widgets_of(app: Playground) -> list:
    found, todo = [], [app.root]
    while todo:
        widget = todo.pop()
        found.append(widget)
        todo += getattr(widget, "children", ())
    return found


def test_every_control_has_a_name(app: Playground):
    ask(app, "hello")
    controls = [widget for widget in widgets_of(app) if hasattr(widget, "description") and hasattr(widget, "disabled")]
    assert len(controls) > 20
    assert [control for control in controls if not control.description and type(control).__name__ != "HTML"] == []
    assert not [control for control in controls if "Slider" in type(control).__name__], "JupyterLab names no sliders"


@pytest.mark.parametrize("text", ["", "   "])
def test_an_empty_message_is_one_sentence(app: Playground, text: str):
    ask(app, text)
    assert "The question is empty" in app.status.value and app.views == []


def test_an_error_of_the_model_is_shown_the_question_comes_back_and_the_chat_goes_on(app: Playground, monkeypatch):
    def broken(*args, **kwargs):
        yield 40
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(reply, "stream", broken)
        ask(app, "hello")
    assert "RuntimeError: out of memory" in app.status.value
    assert app.views == [] and app.message.value == "hello"
    app.send.click()
    app.wait(60)
    assert ANSWERS["hello"] in answer_shown(app) and app.status.value == ""


def test_an_error_in_a_callback_is_shown(app: Playground, monkeypatch):
    ask(app, "hello")

    def broken(*args):
        raise KeyError("lost")

    monkeypatch.setattr(app.session, "thumb", broken)
    app.views[0].answers[0].helpful.click()
    assert "KeyError" in app.status.value and "continue the chat" in app.status.value


def test_thumbs_are_recorded_shown_changed_and_taken_back(app: Playground):
    ask(app, "hello")
    view = app.views[0].answers[0]
    view.helpful.click()
    assert view.helpful.button_style == "success"
    view.not_helpful.click()
    assert (view.helpful.button_style, view.not_helpful.button_style) == ("", "warning")
    view.not_helpful.click()
    assert view.not_helpful.button_style == ""
    assert [(r.kind, r.value, r.text) for r in records()] == [
        ("thumb", 1, ""), ("thumb", -1, ""), ("retract", None, "thumb"),
    ]  # fmt: skip
    assert feedback.current(records()) == []


def test_a_comment_and_a_better_answer_are_recorded_once_and_can_be_taken_back(app: Playground):
    ask(app, "hello")
    view = app.views[0].answers[0]
    view.say_more.click()
    assert view.form.layout.display is None
    view.comment.value, view.correction.value = "too short", "Hello, my friend!"
    view.save.click()
    view.save.click()
    assert "Nothing new" in view.saved.value
    view.comment.value = ""
    view.save.click()
    assert [(r.kind, r.text) for r in records()] == [
        ("comment", "too short"), ("correction", "Hello, my friend!"), ("retract", "comment"),
    ]  # fmt: skip


def test_compare_shows_two_answers_and_the_choice_counts_and_can_be_changed(app: Playground):
    app.temperature.value = 2.0
    ask(app, "hello", press="compare")
    view = app.views[0]
    texts = [answer.text for answer in app.session.exchanges[0].answers]
    assert [markup.escape(text) in each.bubble.value for text, each in zip(texts, view.answers, strict=True)] == [
        True
    ] * 2
    view.choose[0].click()
    view.choose[1].click()
    assert [r.value for r in records()] == [0, 1]
    assert "nc-chosen" in view.answers[1].bubble.value and "nc-chosen" not in view.answers[0].bubble.value
    assert app.session.history[-1].text == texts[1]


def test_regenerate_shows_another_answer_and_the_way_back(app: Playground):
    app.temperature.value = 2.0
    ask(app, "hello")
    first = app.session.exchanges[0].answer
    app.views[0].answers[0].helpful.click()
    app.regenerate.click()
    app.wait(60)
    second = app.session.exchanges[0].answer
    assert first.id != second.id and len(app.views) == 1
    assert app.views[0].answers[0].helpful.button_style == "", "the new answer has no thumb yet"
    assert "2 of 2" in app.views[0].other.description
    app.views[0].other.click()
    assert app.session.exchanges[0].answer is first and markup.escape(first.text) in answer_shown(app)
    assert app.views[0].answers[0].helpful.button_style == "success"


def test_regenerate_after_compare_goes_on_with_one_answer(app: Playground):
    app.temperature.value = 2.0
    ask(app, "hello", press="compare")
    app.regenerate.click()
    app.wait(60)
    assert len(app.views[0].answers) == 1 and "3 of 3" in app.views[0].other.description and app.status.value == ""


def test_a_failed_regenerate_leaves_the_answer_before(app: Playground, monkeypatch):
    ask(app, "hello")

    def broken(*args, **kwargs):
        raise RuntimeError("out of memory")
        yield

    monkeypatch.setattr(reply, "stream", broken)
    app.regenerate.click()
    app.wait(60)
    assert ANSWERS["hello"] in answer_shown(app) and "out of memory" in app.status.value


def test_settings_reach_the_model_and_the_defaults_are_greedy(app: Playground):
    assert app.session.settings == session.Settings()
    app.temperature.value, app.top_k.value, app.top_p.value = 0.7, 20, 0.9
    app.length.value, app.seed.value, app.remember.value = 12, 5, 1
    assert app.session.settings == session.Settings(0.7, 20, 0.9, 12, 5, 1)
    ask(app, "count")
    assert len(app.session.exchanges[0].answer.ids) <= 12


def test_an_example_is_asked_with_its_passage(app: Playground):
    assert app.examples.layout.display is None
    app.examples.children[-1].click()
    app.wait(60)
    exchange = app.session.exchanges[0]
    assert (exchange.question, exchange.passage) == EXAMPLES[-1]
    assert "nc-passage" in app.views[0].question.value and app.examples.layout.display == "none"


def test_a_notice_of_the_session_is_shown(app: Playground):
    ask(app, "word " * 200)
    assert "too long for this model" in app.status.value


def test_why_colours_tokens_and_lists_candidates(app: Playground):
    ask(app, "hello")
    view = app.views[0].answers[0]
    view.why.click()
    _, coloured, place, candidates = view.inside.children[0].children
    assert coloured.value.count("<span") == len(place.options) == len(app.session.exchanges[0].answer.ids) + 1
    place.value = len(place.options) - 1
    assert "&lt;|end|&gt;" in candidates.value and "← written" in candidates.value
    view.why.click()
    assert view.inside.layout.display == "none"


def test_another_model_can_be_chosen_and_the_chat_goes_on(app: Playground, nanochat_home: Path):
    tiny_checkpoint(nanochat_home, "other", stage="base_model")
    app = Playground("tiny", device="cpu")
    ask(app, "hello")
    app.model.value = paths.checkpoint_path("other", "base_model")
    assert app.session.run == "other" and "not taught to answer yet" in app.about.value
    ask(app, "hello")
    app.views[1].answers[0].helpful.click()
    assert len(app.views) == 2 and [r.stage for r in records("other")] == ["base_model"]


def test_a_model_whose_base_model_is_gone_is_not_used_without_a_word(nanochat_home: Path):
    tiny_checkpoint(nanochat_home)
    lost = tiny_checkpoint(nanochat_home, "lost", parent="0123456789abcdef")
    app = Playground("tiny", device="cpu")
    app.model.value = lost
    assert "was trained from a model 0123456789abcdef that is no longer in its run" in app.status.value
    assert "0123456789abcdef" in Playground("lost", device="cpu").status.value


def test_a_model_that_is_gone_is_told_and_the_old_one_kept(app: Playground, nanochat_home: Path):
    gone = tiny_checkpoint(nanochat_home, "gone")
    app = Playground("tiny", device="cpu")
    gone.unlink()
    app.model.value = gone
    assert "no checkpoint" in app.status.value
    assert app.session.run == "tiny" and app.model.value == app.session.loaded.path


def test_the_score_of_a_report_card_is_shown_if_it_is_of_this_model(app: Playground, nanochat_home: Path):
    size = f"{app.session.loaded.model.n_params():,} parameters"
    assert "0.40 bits per byte" in app.about.value and size in app.about.value
    card = {
        "model": {"fingerprint": app.session.loaded.meta["fingerprint"]},
        "scores": [{"skill": "all", "em": 0.5, "n": 10}, {"skill": "all", "em": 1.0, "n": 30}],
    }
    path = nanochat_home / "out" / "tiny" / "fine_tuned_card.json"
    path.write_text(json.dumps(card))
    assert "88% of held-out questions right" in Playground("tiny", device="cpu").about.value
    path.write_text(json.dumps({**card, "model": {"fingerprint": "older"}}))
    assert "held-out" not in Playground("tiny", device="cpu").about.value


def test_a_chat_is_saved_and_can_be_taken_up_after_a_restart(app: Playground):
    app.temperature.value = 2.0
    ask(app, "hello")
    app.views[0].answers[0].helpful.click()
    ask(app, "wave", press="compare")
    app.views[1].choose[1].click()
    later = Playground("tiny", device="cpu")
    label, path = later.earlier.options[1]
    assert "hello" in label
    later.earlier.value = path
    assert later.session.exchanges == app.session.exchanges
    assert later.views[0].answers[0].helpful.button_style == "success"
    assert later.views[1].choose[1].button_style == "success"
    ask(later, "hello")
    assert len(session.transcripts("tiny")) == 1, "it goes on in the same file"


def test_a_new_chat_begins_and_the_old_one_is_kept(app: Playground):
    ask(app, "hello")
    app.new_chat.click()
    assert app.views == [] and app.session.exchanges == [] and app.examples.layout.display is None
    ask(app, "wave")
    assert len(session.transcripts("tiny")) == 2


def test_a_damaged_chat_is_told_and_nothing_is_lost(app: Playground):
    ask(app, "hello")
    path = paths.run_dir("tiny") / "chats" / "20200101T000000000Z.json"
    path.write_text("{")
    app.new_chat.click()
    ask(app, "wave")
    app._list_chats()
    app.earlier.value = path
    assert "damaged" in app.status.value and len(app.views) == 1


def test_a_full_disk_is_told_and_the_feedback_saved_once_there_is_room(app: Playground, monkeypatch):
    ask(app, "hello")

    def full(fd, line):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", full)
        app.views[0].answers[0].helpful.click()
        assert "No space left on device" in app.status.value and records() == []
    app.feedback.refresh()
    assert [r.kind for r in records()] == ["thumb"]


def test_a_chat_that_cannot_be_saved_goes_on(app: Playground, monkeypatch):
    def full(self, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ChatSession, "save", full)
    ask(app, "hello")
    assert "could not be saved" in app.status.value and ANSWERS["hello"] in answer_shown(app)


def test_the_feedback_tab_counts_lists_and_filters(app: Playground):
    app.temperature.value = 2.0
    ask(app, "hello")
    app.views[0].answers[0].helpful.click()
    ask(app, "wave")
    app.views[1].answers[0].not_helpful.click()
    ask(app, "count", press="compare")
    app.views[2].choose[0].click()
    app.feedback.refresh()
    assert "1 of 2 judged ones were liked" in app.feedback.counts.value
    assert app.feedback.rows.value.count("<tr>") == 4
    app.feedback.which.value = "Not helpful"
    assert app.feedback.rows.value.count("<tr>") == 2 and "wave" in app.feedback.rows.value
    app.feedback.stage.value = "aligned"
    assert app.feedback.rows.value == ""
    assert "data/feedback/tiny.jsonl" in app.feedback.note.value.replace("\\", "/")


def test_the_export_is_pairs_as_json_lines(app: Playground):
    app.feedback.export.click()
    assert "no pairs yet" in app.feedback.note.value
    ask(app, "hello")
    app.views[0].answers[0].correction.value = "Hello 👋"
    app.views[0].answers[0].save.click()
    app.feedback.export.click()
    lines = (paths.run_dir("tiny") / "preferences.jsonl").read_text().splitlines()
    assert [json.loads(line)["chosen"][0]["content"] for line in lines] == ["Hello 👋"]
    assert "1 pair" in app.feedback.note.value and "download=" in app.feedback.note.value


def test_a_torn_line_in_the_feedback_is_told(app: Playground):
    ask(app, "hello")
    app.views[0].answers[0].helpful.click()
    with paths.feedback_path("tiny").open("ab") as file:
        file.write(b'{"schema')
    app.feedback.refresh()
    assert "1 unreadable line" in app.feedback.note.value and "helpful" in app.feedback.rows.value


def test_a_table_of_nothing_says_what_to_do():
    assert "press Helpful" in summary([])
    talk = Conversation((Turn("user", HOSTILE),))
    record = Record("rating", "a", "r", "aligned", talk, (HOSTILE,), 4)
    assert "<script" not in as_table(feedback.current([record])) and "4 of 5" in as_table(feedback.current([record]))


@pytest.fixture
def displayed(monkeypatch) -> list[dict]:
    """The objects that a notebook would display."""
    shell = InteractiveShell()
    shown: list[dict] = []
    monkeypatch.setattr(InteractiveShell, "initialized", classmethod(lambda cls: True))
    monkeypatch.setattr(InteractiveShell, "instance", classmethod(lambda cls: shell))
    monkeypatch.setattr(shell.display_pub, "publish", lambda data, *args, **kwargs: shown.append(data))
    return shown


def test_the_saved_notebook_reads_well_without_the_widget(nanochat_home: Path, displayed):
    tiny_checkpoint(nanochat_home)
    playground("tiny")
    (data,) = displayed
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/plain"].startswith("A chat with tiny (fine_tuned)")
    assert f"You: {EXAMPLES[0][0]}\nModel: " in data["text/plain"]
    assert "<script" not in data["text/html"] and "<p>Model: " in data["text/html"]
    assert session.transcripts("tiny") == [] and not paths.feedback_path("tiny").exists(), "looking writes nothing"


@pytest.mark.parametrize("run", [None, "nobody", "../evil"])
def test_without_a_model_the_notebook_says_how_to_make_one(nanochat_home: Path, displayed, run):
    playground(run)
    (data,) = displayed
    assert "nanochat course" in data["text/plain"] and "04_qa_finetuning" in data["text/html"]
    assert "Traceback" not in data["text/plain"]
