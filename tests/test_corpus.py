"""From text to token files to batches: nothing is lost, mixed up or half-written."""

from __future__ import annotations

import json
import os
import random
import shutil
import tracemalloc
import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config import UserError
from nanochat.data import corpus as corpus_files
from nanochat.data import textfiles, tokenfiles
from nanochat.data.corpus import CorpusData, batch, last_prepared, load_corpus, prepare_corpus, prepare_qa, val_windows
from nanochat.data.questions import Conversation, Turn, load_qa, read_qa, render
from nanochat.data.tokenfiles import readable
from nanochat.paths import newest_first
from nanochat.tokenizer import Tokenizer, train_bpe

FILES = [
    "meta.json",
    "pretrain_input.txt",
    "pretrain_train.bin",
    "pretrain_val.bin",
    "tokenizer.json",
    "tokenizer.tiktoken",
]


def sentences(n: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    nouns, verbs = ["cat", "dog", "sun", "moon", "tree", "river"], ["sees", "likes", "finds", "hears", "draws"]
    return [f"The {draw.choice(nouns)} {draw.choice(verbs)} the {draw.choice(nouns)} {i}." for i in range(n)]


BOOK = "\n".join(line + "\n" * (i % 5 == 0) for i, line in enumerate(sentences(400)))
STORIES = [" ".join(sentences(6, seed)) + ("\nThe end." if seed % 2 else "") for seed in range(40)]


@pytest.fixture
def book(tmp_path: Path, nanochat_home: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(BOOK, encoding="utf-8")
    return path


@pytest.fixture
def stories(tmp_path: Path, nanochat_home: Path) -> Path:
    path = tmp_path / "stories.txt"
    path.write_text("\n<|endoftext|>\n".join(STORIES), encoding="utf-8")
    return path


def parts(tokens: np.ndarray, tok: Tokenizer) -> list[str]:
    """The documents of a token file."""
    assert tokens[0] == tokens[-1] == tok.eot
    borders = np.flatnonzero(tokens == tok.eot)
    return [tok.decode(tokens[a:b]) for a, b in pairwise(borders)]


def in_folder(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


# --- what is in the files ---


def test_every_document_begins_after_a_mark_and_is_ended_by_one(stories: Path) -> None:
    data = prepare_corpus(str(stories), "bpe:300")
    train, val = parts(data.train, data.tokenizer), parts(data.val, data.tokenizer)
    assert train + val == STORIES
    assert 0.85 < sum(map(len, train)) / sum(map(len, STORIES)) < 0.95
    assert data.meta["split"] == "document"


def test_a_book_is_split_between_two_lines_near_nine_tenths(book: Path) -> None:
    data = prepare_corpus(str(book), "bpe:300")
    (train,), (val,) = parts(data.train, data.tokenizer), parts(data.val, data.tokenizer)
    assert train + val == BOOK
    assert train.endswith("\n") and not val.startswith("\n")
    assert abs(len(train) - 0.9 * len(BOOK)) < 60  # within a line or two
    assert data.meta["split"] == "line"


@pytest.mark.parametrize("n", range(30, 42))
def test_blank_lines_stay_with_the_paragraph_before_them(tmp_path: Path, nanochat_home: Path, n: int) -> None:
    text = "\n\n\n".join(sentences(n))
    (tmp_path / "paragraphs.txt").write_text(text, encoding="utf-8")
    data = prepare_corpus(str(tmp_path / "paragraphs.txt"), "bpe:261")
    train, val = data.tokenizer.decode(data.train), data.tokenizer.decode(data.val)
    assert train.endswith("\n\n\n") and val.startswith("The") and train + val == text


def test_no_character_is_cut_in_two(tmp_path: Path, nanochat_home: Path) -> None:
    (tmp_path / "one.txt").write_text("北" * 77, encoding="utf-8")
    data = prepare_corpus(str(tmp_path / "one.txt"), "bpe:261")  # every byte is a token
    assert [data.tokenizer.decode(data.train), data.tokenizer.decode(data.val)] == ["北" * 69, "北" * 8]


def test_a_text_without_lines_is_split_all_the_same(tmp_path: Path, nanochat_home: Path) -> None:
    text = " ".join(sentences(200)) + " 北京é" * 30
    (tmp_path / "one.txt").write_text(text, encoding="utf-8")
    data = prepare_corpus(str(tmp_path / "one.txt"), "bpe:300")
    assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == text
    assert data.meta["split"] == "token"


@pytest.mark.parametrize("first", [10, 300])
def test_a_border_of_documents_far_from_nine_tenths_is_passed_over(
    tmp_path: Path, nanochat_home: Path, first: int
) -> None:
    lines = BOOK.split("\n")
    texts = ["\n".join(lines[:first]), "\n".join(lines[first:])]
    (tmp_path / "two.txt").write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    data = prepare_corpus(str(tmp_path / "two.txt"), "bpe:300")
    assert data.meta["split"] == "line" and 0.88 < data.meta["train"]["bytes"] / len(BOOK) < 0.92
    train, val = parts(data.train, data.tokenizer), parts(data.val, data.tokenizer)
    assert [train[0], train[1] + val[0]] == texts


@pytest.mark.parametrize("content", ["stories", "book"])
def test_meta_counts_what_is_in_the_files(request: pytest.FixtureRequest, content: str) -> None:
    path = request.getfixturevalue(content)
    data = prepare_corpus(str(path), "bpe:300")
    for split, tokens in (("train", data.train), ("val", data.val)):
        texts = parts(tokens, data.tokenizer)
        assert data.meta[split] == {
            "documents": len(texts),
            "tokens": len(tokens),
            "bytes": sum(len(text.encode()) for text in texts),
        }
    assert data.meta["tokenizer_fingerprint"] == data.tokenizer.fingerprint
    assert data.meta["vocab_size"] == data.tokenizer.vocab_size
    assert data.meta["corpus"] == str(path) and data.meta["stripped_bytes"] == 0
    assert data.train.dtype == np.dtype(data.meta["dtype"]) == np.uint16


def test_a_licence_is_not_trained_on_and_is_reported(book: Path) -> None:
    head, foot = "*** START OF THE PROJECT GUTENBERG EBOOK X ***\n", "*** END OF THE PROJECT GUTENBERG EBOOK X ***\n"
    book.write_text(f"This eBook is for anyone\n{head}{BOOK}\n{foot}Terms of use\n", encoding="utf-8")
    data = prepare_corpus(str(book), "bpe:300")
    assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == BOOK.rstrip("\n")
    total = data.meta["train"]["bytes"] + data.meta["val"]["bytes"]
    assert data.meta["stripped_bytes"] == book.stat().st_size - total


def test_typed_marks_in_a_corpus_stay_text(tmp_path: Path, nanochat_home: Path) -> None:
    texts = [f"<|user|> says {line} <|end|> and <|endoftext|>" for line in sentences(40)]
    lines = [json.dumps({"text": text}) for text in texts]
    (tmp_path / "typed.jsonl").write_text("\n".join(lines), encoding="utf-8")
    data = prepare_corpus(str(tmp_path / "typed.jsonl"), "bpe:300")
    assert parts(data.train, data.tokenizer) + parts(data.val, data.tokenizer) == texts


def test_a_large_vocabulary_takes_four_bytes_a_token(book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([a]): a for a in range(256)} | {
        bytes([a, b]): 256 + 256 * a + b for a in range(256) for b in range(256)
    }
    specials = {special: len(ranks) + i for i, special in enumerate(train_bpe([], 300).specials)}
    large = Tokenizer("gpt2", ranks, r"\S+|\s", specials)
    monkeypatch.setattr(corpus_files, "gpt2", lambda: large)
    data = prepare_corpus(str(book), "gpt2")
    assert data.train.dtype == np.uint32 and data.train[0] == large.eot > 65535
    assert data.tokenizer.decode(data.train) + data.tokenizer.decode(data.val) == BOOK


def test_conversations_become_tokens_by_the_one_rendering(
    nanochat_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanochat.data import almanac

    turns = (Turn("user", "What do cats drink?"), Turn("assistant", "Milk."))
    made = [*STORIES, Conversation(turns, "Cats drink milk."), Conversation(turns)] * 3
    monkeypatch.setattr(almanac, "pretrain_documents", lambda size, seed: iter(made))
    data = prepare_corpus("almanac", "bpe:300")
    tok = data.tokenizer
    expected = [
        id for doc in made for id in ([tok.eot, *tok.encode(doc)] if isinstance(doc, str) else render(doc, tok))
    ]
    assert [*data.train[:-1], *data.val[:-1]] == expected
    shown = (data.folder / "pretrain_input.txt").read_text(encoding="utf-8")
    assert shown == "\n\n".join(doc if isinstance(doc, str) else readable(doc) for doc in made)
    assert "\n\nCats drink milk.\nUser: What do cats drink?\nAssistant: Milk.\n\nUser: What" in shown


def test_the_readable_text_of_a_book_is_the_book(book: Path) -> None:
    assert (prepare_corpus(str(book), "bpe:300").folder / "pretrain_input.txt").read_text(encoding="utf-8") == BOOK


@pytest.mark.parametrize("content", ["stories", "book"])
def test_the_files_do_not_depend_on_how_the_text_is_cut_for_work(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    path = request.getfixturevalue(content)
    data = prepare_corpus(str(path), "bpe:300")
    once = {name: (data.folder / name).read_bytes() for name in FILES}
    monkeypatch.setattr(textfiles, "PIECE", 100)
    monkeypatch.setattr(tokenfiles, "CHUNK", 500)
    monkeypatch.setattr(tokenfiles, "TOKENS", 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    (data.folder / "meta.json").unlink()
    again = prepare_corpus(str(path), "bpe:300")
    assert not again.reused
    assert {name: (data.folder / name).read_bytes() for name in FILES} == once


def test_a_tokenizer_is_learned_from_a_bounded_beginning(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_files, "SAMPLE", 1000)
    data = prepare_corpus(str(stories), "bpe:300")
    n = next(n for n in range(len(STORIES)) if sum(map(len, STORIES[:n])) >= 1000)
    assert data.tokenizer.fingerprint == train_bpe(STORIES[:n], 300).fingerprint
    assert parts(data.train, data.tokenizer) + parts(data.val, data.tokenizer) == STORIES


@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_preparing_takes_memory_for_pieces_not_for_the_text(
    tmp_path: Path, nanochat_home: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = tmp_path / f"large{ending}"
    pages = ["\n".join(sentences(100, seed)) for seed in range(1000)]
    path.write_text("\n".join(json.dumps({"text": page}) if "json" in ending else page for page in pages))
    monkeypatch.setattr(textfiles, "PIECE", 1 << 14)
    monkeypatch.setattr(tokenfiles, "CHUNK", 1 << 15)
    monkeypatch.setattr(tokenfiles, "TOKENS", 1 << 12)
    monkeypatch.setattr(corpus_files, "SAMPLE", 1 << 16)
    tracemalloc.start()
    data = prepare_corpus(str(path), "bpe:300")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert data.meta["train"]["bytes"] > 2_000_000
    assert peak < 1_000_000


# --- using it again ---


def test_the_same_preparation_is_used_again(book: Path) -> None:
    heard: list[tuple[int, int | None, str]] = []
    data = prepare_corpus(str(book), "bpe:300", progress=lambda *news: heard.append(news))
    assert not data.reused and heard[-1] == (len(BOOK), len(BOOK), "book is prepared")
    made = {name: (data.folder / name).stat().st_ino for name in FILES}
    again = prepare_corpus(str(book), "bpe:300", progress=lambda *news: heard.append(news))
    assert again.reused and heard[-1] == (len(BOOK), len(BOOK), "book is prepared already")
    assert {name: (data.folder / name).stat().st_ino for name in FILES} == made
    assert in_folder(data.folder) == FILES


def test_another_text_or_tokenizer_is_prepared_anew(book: Path) -> None:
    first = prepare_corpus(str(book), "bpe:300")
    other_vocabulary = prepare_corpus(str(book), "bpe:310")
    assert not other_vocabulary.reused and other_vocabulary.tokenizer.vocab_size == 310
    book.write_text(BOOK.replace("cat", "cow"), encoding="utf-8")
    other_text = prepare_corpus(str(book), "bpe:310")
    assert not other_text.reused and "cow" in other_text.tokenizer.decode(other_text.train)
    assert len({data.meta["fingerprint"] for data in (first, other_vocabulary, other_text)}) == 3


def test_size_and_seed_of_the_almanac_decide_what_is_prepared(nanochat_home: Path) -> None:
    first = prepare_corpus("almanac", "bpe:300", size="smoke")
    assert prepare_corpus("almanac", "bpe:300", size="smoke").reused
    other = prepare_corpus("almanac", "bpe:300", size="smoke", seed=1)
    assert not other.reused and other.meta["fingerprint"] != first.meta["fingerprint"]


def test_a_fingerprint_is_a_function_of_text_and_tokenizer(book: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.txt").write_text(BOOK, encoding="utf-8")
    one, two = prepare_corpus(str(book), "bpe:300"), prepare_corpus(str(tmp_path / "copy.txt"), "bpe:300")
    assert one.meta["fingerprint"] == two.meta["fingerprint"]


def test_the_corpus_prepared_or_used_last_is_found(book: Path, stories: Path) -> None:
    assert last_prepared() is None
    for path in (book, stories, book):
        prepare_corpus(str(path), "bpe:300")
        found = last_prepared()
        assert found is not None and found.name == path.stem


def test_of_corpora_prepared_at_the_same_moment_the_first_by_name_is_the_last_prepared(
    book: Path, stories: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (stories, book):
        os.utime(prepare_corpus(str(path), "bpe:300").folder / "meta.json", (100, 100))
    glob = Path.glob
    for backwards in (False, True):  # in whatever order the system lists them
        monkeypatch.setattr(Path, "glob", lambda *args, b=backwards: iter(sorted(glob(*args), reverse=b)))
        found = last_prepared()
        assert found is not None and found.name == "book"


def test_questions_that_are_used_again_are_the_newest(tmp_path: Path, nanochat_home: Path, tok: Tokenizer) -> None:
    asked = [json.dumps({"question": f"{i}?", "answer": "yes"}) for i in range(20)]
    specs = namesakes(tmp_path, ".jsonl", "\n".join(asked), "\n".join(asked[:15]))
    metas = [prepare_qa(spec, tok, 64).folder / "meta.json" for spec in specs]
    for meta, time in zip(metas, (100, 200), strict=True):
        os.utime(meta, (time, time))
    assert newest_first(metas) == [metas[1], metas[0]]
    prepare_qa(specs[0], tok, 64)
    assert newest_first(metas) == metas


# --- files of one name ---


def namesakes(tmp_path: Path, suffix: str, *contents: str) -> list[str]:
    """Files of the same name, `notes`, in different folders."""
    paths = [tmp_path / f"folder {i}" / f"notes{suffix}" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.parent.mkdir()
        path.write_text(content, encoding="utf-8")
    return list(map(str, paths))


def test_a_file_never_replaces_what_was_prepared_from_another_of_its_name(tmp_path: Path, nanochat_home: Path) -> None:
    ours, theirs = namesakes(tmp_path, ".txt", BOOK, BOOK.upper())
    first = prepare_corpus(ours, "bpe:300")
    second = prepare_corpus(theirs, "bpe:300")
    assert first.folder.name == "notes" and second.folder.name.startswith("notes_")
    assert load_corpus(first.folder).meta == first.meta and load_corpus(second.folder).meta == second.meta
    assert prepare_corpus(ours, "bpe:300").reused and prepare_corpus(theirs, "bpe:300").reused


def test_a_file_keeps_its_folder_when_it_is_edited_and_when_the_other_goes(tmp_path: Path, nanochat_home: Path) -> None:
    ours, theirs = namesakes(tmp_path, ".txt", BOOK, BOOK.upper())
    folders = [prepare_corpus(path, "bpe:300").folder for path in (ours, theirs)]
    Path(ours).write_text(BOOK.replace("cat", "cow"), encoding="utf-8")
    again = prepare_corpus(ours, "bpe:300")
    assert again.folder == folders[0] and not again.reused
    shutil.rmtree(folders[0])
    assert prepare_corpus(theirs, "bpe:300").folder == folders[1]


def test_a_file_that_was_moved_is_known_by_its_content(tmp_path: Path, nanochat_home: Path) -> None:
    ours, moved = namesakes(tmp_path, ".txt", BOOK, "")
    first = prepare_corpus(ours, "bpe:300")
    os.replace(ours, moved)
    again = prepare_corpus(moved, "bpe:300")
    assert again.reused and again.folder == first.folder


def test_a_path_is_remembered_so_that_it_holds_from_everywhere(
    book: Path, nanochat_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(book.parent)
    data = prepare_corpus(book.name, "bpe:300")
    assert data.meta["corpus"] == str(book)
    assert prepare_corpus(str(book), "bpe:300").reused


def test_a_text_that_is_renamed_to_json_is_read_again(tmp_path: Path, nanochat_home: Path) -> None:
    path = tmp_path / "stories.txt"
    path.write_text("\n".join(json.dumps({"text": text}) for text in STORIES), encoding="utf-8")
    assert prepare_corpus(str(path), "bpe:300").meta["train"]["documents"] == 1
    data = prepare_corpus(str(path.rename(path.with_suffix(".jsonl"))), "bpe:300")
    assert not data.reused and data.meta["train"]["documents"] > 30


# --- faults ---


@pytest.mark.parametrize("text", ["", "   \n ", "x"])
def test_too_little_text_leaves_nothing_behind(tmp_path: Path, nanochat_home: Path, text: str) -> None:
    (tmp_path / "little.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="text"):
        prepare_corpus(str(tmp_path / "little.txt"), "bpe:300")
    assert in_folder(nanochat_home / "data") == []


@pytest.mark.parametrize(("corpus", "tokenizer"), [("almanack", "bpe:300"), ("book", "bpe:7"), ("no/such.txt", "gpt2")])
def test_bad_names_leave_nothing_behind(nanochat_home: Path, corpus: str, tokenizer: str) -> None:
    with pytest.raises(UserError):
        prepare_corpus(corpus, tokenizer)
    assert in_folder(nanochat_home) == []


def test_a_fault_in_the_middle_leaves_an_earlier_preparation_as_it_was(tmp_path: Path, nanochat_home: Path) -> None:
    path = tmp_path / "lines.jsonl"
    good = [json.dumps({"text": text}) for text in STORIES]
    path.write_text("\n".join(good), encoding="utf-8")
    data = prepare_corpus(str(path), "bpe:300")
    before = {name: (data.folder / name).read_bytes() for name in FILES}
    path.write_text("\n".join([*good, "{broken"]), encoding="utf-8")
    with pytest.raises(UserError, match="line 41"):
        prepare_corpus(str(path), "bpe:300")
    assert in_folder(data.folder) == FILES
    assert {name: (data.folder / name).read_bytes() for name in FILES} == before


@pytest.mark.parametrize("stop", ["pretrain_train.bin", "pretrain_input.txt", "tokenizer.json", "meta.json"])
def test_a_preparation_that_is_stopped_while_writing_is_not_taken_for_one(
    book: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    # One token a byte and a text of equal length: nothing but meta.json could tell the two preparations apart.
    first = prepare_corpus(str(book), "bpe:261")
    changed = BOOK.replace("cat", "cow")
    book.write_text(changed, encoding="utf-8")
    replace = os.replace

    def stopped(source: str, target: Path) -> None:
        if Path(target).name == stop:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare_corpus(str(book), "bpe:261")
    assert set(in_folder(first.folder)) <= set(FILES)
    with pytest.raises(UserError, match="nanochat prepare --corpus book"):
        load_corpus(first.folder)
    again = prepare_corpus(str(book), "bpe:261")
    assert not again.reused and again.tokenizer.decode(again.train) + again.tokenizer.decode(again.val) == changed


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """`os.replace` as on Windows, where a memory-mapped file cannot be replaced."""
    replace, memmap, maps = os.replace, np.memmap, []

    def mapping(path: Path, **options: Any) -> np.memmap:
        mapped = memmap(path, **options)
        maps.append((Path(path), weakref.ref(mapped)))
        return mapped

    def refusing(source: str, target: Path) -> None:
        if any(path == Path(target) and mapped() is not None for path, mapped in maps):
            raise PermissionError(13, "Access is denied", source, 5, target)
        replace(source, target)

    monkeypatch.setattr(np, "memmap", mapping)
    monkeypatch.setattr(os, "replace", refusing)


def test_what_a_notebook_has_open_is_not_replaced_and_stays_prepared(book: Path, windows: None) -> None:
    opened = prepare_corpus(str(book), "bpe:300")
    with pytest.raises(
        UserError, match=r"cannot replace the files in .*book.*denied.*shut down .* notebooks"
    ) as caught:
        prepare_corpus(str(book), "bpe:310")
    assert "\n" not in str(caught.value)
    assert in_folder(opened.folder) == FILES
    assert load_corpus(opened.folder).meta == opened.meta
    assert prepare_corpus(str(book), "bpe:300").reused
    del opened
    assert prepare_corpus(str(book), "bpe:310").tokenizer.vocab_size == 310


def test_questions_that_a_notebook_has_open_are_not_replaced_and_stay_prepared(
    questions: Path, tok: Tokenizer, windows: None
) -> None:
    opened = prepare_qa(str(questions), tok, 64)
    with pytest.raises(UserError, match="shut down the kernels of all notebooks"):
        prepare_qa(str(questions), tok, 65)
    assert load_qa(opened.folder).meta == opened.meta
    assert len(opened.val_conversations) == len(opened.val)
    del opened
    assert prepare_qa(str(questions), tok, 65).meta["block_size"] == 65


def test_a_folder_without_a_corpus_says_how_to_prepare_one(nanochat_home: Path) -> None:
    with pytest.raises(UserError, match="run `nanochat prepare --corpus dracula`"):
        load_corpus(nanochat_home / "data" / "dracula")


def damage(folder: Path, kind: str) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    if kind == "cut":
        os.truncate(folder / "pretrain_val.bin", 10)
    elif kind == "empty":
        os.truncate(folder / "pretrain_train.bin", 0)
    elif kind == "no tokenizer":
        (folder / "tokenizer.tiktoken").unlink()
    elif kind == "torn meta":
        (folder / "meta.json").write_text(json.dumps(meta)[:50])
    else:
        train_bpe([BOOK.upper()], 300).save(folder)


@pytest.mark.parametrize("kind", ["cut", "empty", "no tokenizer", "torn meta", "other tokenizer"])
def test_damage_is_one_clear_error_and_preparing_again_mends_it(book: Path, kind: str) -> None:
    data = prepare_corpus(str(book), "bpe:300")
    stored = data.tokenizer.fingerprint
    damage(data.folder, kind)
    with pytest.raises(UserError, match="prepare") as caught:
        load_corpus(data.folder)
    if kind == "other tokenizer":
        assert stored in str(caught.value) and Tokenizer.load(data.folder).fingerprint in str(caught.value)
    mended = prepare_corpus(str(book), "bpe:300")
    assert not mended.reused and mended.tokenizer.fingerprint == stored


# --- batches ---

counting = np.arange(1000, dtype=np.uint16)


def test_targets_are_the_next_tokens() -> None:
    x, y = batch(counting, seed=0, step=0, batch_size=5, block_size=7)
    assert x.shape == y.shape == (5, 7) and x.dtype == y.dtype == np.int64
    assert (y == x + 1).all() and (x[:, 1:] == y[:, :-1]).all()


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_batch_is_a_function_of_seed_and_step(seed: int, step: int) -> None:
    first = batch(counting, seed=seed, step=step, batch_size=4, block_size=8)
    np.random.default_rng().random(3)  # whatever else draws numbers in between
    again = batch(counting, seed=seed, step=step, batch_size=4, block_size=8)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))


def test_other_steps_and_seeds_give_other_batches() -> None:
    made = {
        batch(counting, seed=seed, step=step, batch_size=4, block_size=8)[0].tobytes()
        for seed in range(10)
        for step in range(10)
    }
    assert len(made) == 100


def test_every_window_can_be_drawn_and_none_goes_over_the_end() -> None:
    tokens = np.arange(10, dtype=np.uint16)
    starts = {
        int(x) for step in range(50) for x in batch(tokens, seed=0, step=step, batch_size=8, block_size=7)[0][:, 0]
    }
    assert starts == {0, 1, 2}


@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 50))
def test_validation_windows_do_not_overlap_and_reach_from_end_to_end(n: int, block_size: int, limit: int) -> None:
    tokens = np.arange(n, dtype=np.uint16)
    if n < block_size + 1:
        with pytest.raises(UserError, match="too short"):
            val_windows(tokens, block_size)
        return
    x, y = val_windows(tokens, block_size)
    assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == ((n - 1) // block_size, block_size)
    assert (x.ravel() == np.arange(x.size)).all() and (y == x + 1).all()
    some, _ = val_windows(tokens, block_size, limit)
    assert len(some) == min(limit, len(x)) and some[0, 0] == 0
    gaps = np.diff(some[:, 0]) // block_size
    assert len(gaps) == 0 or (gaps.min() >= 1 and gaps.max() - gaps.min() <= 1)
    assert (val_windows(tokens, block_size, limit)[0] == some).all()


@pytest.mark.parametrize("n", [0, 1, 8])
def test_a_corpus_too_short_for_one_window_is_refused(n: int) -> None:
    with pytest.raises(UserError, match=f"split of {n} tokens, too short for windows of 8"):
        batch(np.zeros(n, np.uint16), seed=0, step=0, batch_size=2, block_size=8)


def test_batches_come_from_the_file_itself(book: Path) -> None:
    data = prepare_corpus(str(book), "bpe:300")
    assert isinstance(data, CorpusData) and isinstance(data.train, np.memmap)
    x, _ = batch(data.train, seed=3, step=4, batch_size=2, block_size=32)
    assert type(x) is np.ndarray
    stream = np.fromfile(data.folder / "pretrain_train.bin", np.uint16)
    windows = np.lib.stride_tricks.sliding_window_view(stream, 32)
    assert all((windows == row).all(axis=1).any() for row in x)


# --- questions ---

RECORDS = [{"question": f"Who sees the {word}?", "answer": f"The {word} sees itself."} for word in "abcdefghijkl"]


@pytest.fixture
def questions(tmp_path: Path, nanochat_home: Path) -> Path:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(RECORDS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return train_bpe([BOOK], 300)


def test_questions_are_prepared_and_used_again(questions: Path, tok: Tokenizer, nanochat_home: Path) -> None:
    data = prepare_qa(str(questions), tok, 64)
    assert data.folder == nanochat_home / "data" / "questions_qa"
    assert data.meta["train"]["conversations"] + data.meta["val"]["conversations"] == len(RECORDS)
    assert data.meta["val"]["conversations"] >= 1
    made = (data.folder / "qa_train.bin").stat().st_ino
    prepare_qa(str(questions), tok, 64)
    assert (data.folder / "qa_train.bin").stat().st_ino == made


def test_the_questions_that_were_read_are_kept_for_people(questions: Path, tok: Tokenizer) -> None:
    kept = prepare_qa(str(questions), tok, 64).folder / "qa_input.json"
    assert list(read_qa(kept)) == list(read_qa(questions))
    assert len(json.loads(kept.read_text(encoding="utf-8"))) == len(RECORDS)


def test_questions_never_replace_what_was_prepared_from_others_of_their_name(
    tmp_path: Path, nanochat_home: Path, tok: Tokenizer
) -> None:
    ours, theirs = namesakes(tmp_path, ".json", json.dumps(RECORDS), json.dumps(RECORDS[1:]))
    first, second = prepare_qa(ours, tok, 64), prepare_qa(theirs, tok, 64)
    assert first.folder.name == "notes_qa" and second.folder != first.folder
    assert load_qa(first.folder).meta == first.meta
    corpus = tmp_path / "notes_qa.txt"  # its folder would be that of the questions
    corpus.write_text(BOOK, encoding="utf-8")
    assert prepare_corpus(str(corpus), "bpe:300").folder not in (first.folder, second.folder)
    assert prepare_qa(ours, tok, 64).meta == first.meta and prepare_qa(theirs, tok, 64).meta == second.meta


def test_questions_prepared_by_an_earlier_version_are_prepared_anew(
    questions: Path, tok: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = (prepare_qa(str(questions), tok, 64).folder / "qa_train.bin").stat().st_ino
    monkeypatch.setattr(corpus_files, "FORMAT", corpus_files.FORMAT + 1)
    data = prepare_qa(str(questions), tok, 64)
    assert (data.folder / "qa_train.bin").stat().st_ino != made
    assert data.meta["format"] == corpus_files.FORMAT
    assert prepare_qa(str(questions), tok, 64).meta == data.meta


def test_another_tokenizer_block_size_or_text_prepares_questions_anew(questions: Path, tok: Tokenizer) -> None:
    first = prepare_qa(str(questions), tok, 64).meta
    longer = prepare_qa(str(questions), tok, 65).meta
    other = prepare_qa(str(questions), train_bpe([BOOK], 310), 65).meta
    assert (first["block_size"], longer["block_size"]) == (64, 65)
    assert other["tokenizer_fingerprint"] != longer["tokenizer_fingerprint"] == tok.fingerprint
    questions.write_text(json.dumps(RECORDS[1:]), encoding="utf-8")
    counts = prepare_qa(str(questions), tok, 65).meta
    assert counts["train"]["conversations"] + counts["val"]["conversations"] == len(RECORDS) - 1


def test_the_almanac_trains_on_its_training_split_and_holds_out_the_rest(nanochat_home: Path, tok: Tokenizer) -> None:
    from nanochat.data import almanac

    data = prepare_qa("almanac", tok, 512, size="smoke")
    assert data.folder.name == "almanac_qa"  # data/almanac is the corpus
    splits = [conv.split for conv in almanac.conversations("smoke", 0)]
    assert data.meta["train"]["conversations"] == splits.count("train")
    assert [conv.split for conv in data.val_conversations] == [split for split in splits if split != "train"]


def test_corpus_and_questions_of_one_name_do_not_touch_each_other(nanochat_home: Path) -> None:
    corpus = prepare_corpus("almanac", "bpe:300", size="smoke")
    prepare_qa("almanac", corpus.tokenizer, 256, size="smoke")
    assert prepare_corpus("almanac", "bpe:300", size="smoke").reused


@pytest.mark.parametrize("content", ["[]", "[{]", '[{"question": "Who?"}]', '[{"question": "Who?", "answer": "I."}]'])
def test_bad_questions_leave_nothing_behind(questions: Path, tok: Tokenizer, nanochat_home: Path, content: str) -> None:
    questions.write_text(content, encoding="utf-8")
    with pytest.raises(UserError):
        prepare_qa(str(questions), tok, 64)
    assert in_folder(nanochat_home / "data") == []
