"""The tokenizer: round trips of any text, learned vocabularies, GPT-2's vocabulary, and the files."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from tiktoken.load import load_tiktoken_bpe

from nanochat import tokenizer
from nanochat.config import UserError
from nanochat.tokenizer import SPECIALS, Tokenizer, merges, parse_spec, steps, train_bpe

PROSE = (
    "The sun rises in the east. It's the star nearest to us, and we've known it since 1984 or 2019.\n"
    "  def f(x):\n\treturn x ** 2   \n\n\nDer Fuß, œuvre, 北京是中国的首都。 こんにちは 👩‍🚀🚀 aaaaaaaaaaaa aaaaaaa\n"
) * 20
ODD = [
    "", " ", "\n", "a", "   three blanks before", "trailing   ", "\n\n \n\t x", "don't we'll I'VE 'tis", "aaaaaaaaaaaa",
    "1 12 123 1234567890 1,234.5", "é e\u0301 ﬁ ß", "👩‍🚀👩‍🚀 🇫🇷", "北京 是", "\u00a0\u2003x\u200b", "\x00\x1f\x7f",
    "!!!??..--", "<|endoftext|>", "\ufeffmark", "ab" * 300, "\r\n\r\n",
]  # fmt: skip


@pytest.fixture(scope="module")
def tok() -> Tokenizer:
    return train_bpe([PROSE], 400)


@given(st.text())
def test_decoding_what_was_encoded_gives_the_text_back(tok: Tokenizer, text: str) -> None:
    ids = tok.encode(text)
    assert tok.decode(ids) == text
    assert b"".join(map(tok.token_bytes, ids)) == text.encode()
    assert int(tok.byte_lengths()[ids].sum()) == len(text.encode())


@given(st.lists(st.sampled_from([*SPECIALS, "x", " ", "<|", "|>", "\n"])))
def test_text_that_spells_a_special_token_never_becomes_one(tok: Tokenizer, parts: list[str]) -> None:
    ids = tok.encode("".join(parts))
    assert not set(ids) & {tok.eot, tok.context, tok.user, tok.assistant, tok.end}
    assert tok.encode_batch(["".join(parts)]) == [ids]


def test_a_lone_surrogate_is_encoded_like_other_broken_text(tok: Tokenizer) -> None:
    assert tok.decode(tok.encode("a\ud800b")) == "a\ufffdb"


def test_a_batch_is_encoded_like_its_texts_one_by_one(tok: Tokenizer) -> None:
    assert tok.encode_batch(ODD) == [tok.encode(text) for text in ODD]
    assert tok.encode_batch([]) == []


def test_special_tokens_are_left_out_of_decoded_text(tok: Tokenizer) -> None:
    ids = [tok.eot, tok.user, *tok.encode("hello"), tok.assistant, *tok.encode(" you"), tok.end]
    assert tok.decode(ids) == "hello you"
    assert tok.decode(np.array(ids, dtype=np.uint16)) == "hello you"
    assert [tok.token_bytes(id) for id in (tok.eot, tok.end)] == [b"<|endoftext|>", b"<|end|>"]
    assert not tok.byte_lengths()[[tok.eot, tok.context, tok.user, tok.assistant, tok.end]].any()


@given(st.lists(st.integers(-5, 500)))
def test_decoding_takes_any_ids_and_shows_what_is_no_text(tok: Tokenizer, ids: list[int]) -> None:
    assert isinstance(tok.decode(ids), str)


def test_half_a_character_and_an_unknown_id_show_as_replacement_characters(tok: Tokenizer) -> None:
    first_byte = "é".encode()[0]
    assert tok.decode([first_byte]) == "\ufffd"
    assert tok.decode([tok.vocab_size + 7]) == "\ufffd"
    with pytest.raises(UserError, match="ids 0 to 399"):
        tok.token_bytes(tok.vocab_size)


def test_a_million_blanks_are_encoded(tok: Tokenizer) -> None:
    # tiktoken's regex engine panics on them where the pattern is unbounded
    for text in (" " * 1_000_000, "\n" * 1_000_000 + "x"):
        assert tok.decode(tok.encode(text)) == text


# --- learning ---


def test_learned_merges_encode_as_hugging_face_does() -> None:
    trained = tokenizer._train_hf([PROSE], 395)
    tok = train_bpe([PROSE], 400)
    to_byte = {char: byte for byte, char in enumerate(tokenizer._byte_alphabet())}

    def theirs(text: str) -> list[bytes]:
        return [bytes(to_byte[char] for char in token) for token in trained.encode(text).tokens]

    for text in [*ODD, PROSE]:
        assert [tok.token_bytes(id) for id in tok.encode(text)] == theirs(text), text

    @given(st.text(alphabet="ab c'st12\né北", max_size=40))
    def on_any_text(text: str) -> None:
        assert [tok.token_bytes(id) for id in tok.encode(text)] == theirs(text)

    on_any_text()


def test_the_vocabulary_size_counts_bytes_merges_and_specials(tok: Tokenizer) -> None:
    assert tok.vocab_size == 400
    assert (tok.eot, tok.context, tok.user, tok.assistant, tok.end) == (395, 396, 397, 398, 399)
    assert [tok.token_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert len(merges(tok)) == 400 - 256 - 5
    assert tok.name == "bpe:400"


def test_a_text_with_too_few_pairs_gives_a_smaller_vocabulary() -> None:
    tok = train_bpe(["abab abab"], 1000)
    assert tok.vocab_size == 261 + 2  # "ab" and "abab"; " abab" occurs only once
    assert tok.decode(tok.encode("abab Ω")) == "abab Ω"


def test_learning_nothing_still_gives_a_tokenizer() -> None:
    tok = train_bpe([], 1000)
    assert tok.vocab_size == 261
    assert tok.encode("hé") == list("hé".encode())


def test_the_same_texts_give_the_same_tokenizer_in_another_process(tok: Tokenizer) -> None:
    program = f"from nanochat.tokenizer import train_bpe; print(train_bpe([{PROSE!r}], 400).fingerprint)"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == tok.fingerprint == train_bpe([PROSE], 400).fingerprint


def test_other_texts_give_another_fingerprint(tok: Tokenizer) -> None:
    assert train_bpe([PROSE[::-1]], 400).fingerprint != tok.fingerprint
    assert len(tok.fingerprint) == 16 and int(tok.fingerprint, 16) >= 0


def test_numbers_are_cut_into_groups_of_at_most_two_digits() -> None:
    tok = train_bpe(["year 1984 1984 19841984 " * 50], 400)
    assert [tok.token_bytes(id) for id in tok.encode("in 1984")][-2:] == [b" 19", b"84"]
    assert not any(sum(byte in b"0123456789" for byte in piece) > 2 for piece in tok.ranks)


# --- merges one by one ---


def test_each_merge_joins_two_earlier_tokens(tok: Tokenizer) -> None:
    known = {bytes([byte]) for byte in range(256)}
    for left, right in merges(tok):
        assert left in known and right in known
        known.add(left + right)
    assert known == set(tok.ranks)


def test_merges_are_those_that_were_learned_in_their_order(tok: Tokenizer) -> None:
    to_byte = {char: byte for byte, char in enumerate(tokenizer._byte_alphabet())}
    learned = json.loads(tokenizer._train_hf([PROSE], 395).to_str())["model"]["merges"]
    assert merges(tok) == [tuple(bytes(to_byte[c] for c in part) for part in pair) for pair in learned]


@given(st.text(alphabet="the sun'1984é\n", max_size=30))
def test_steps_go_from_bytes_to_what_encode_gives_one_merge_at_a_time(tok: Tokenizer, text: str) -> None:
    states = steps(tok, text)
    assert states[0] == [bytes([byte]) for byte in text.encode()]
    assert states[-1] == [tok.token_bytes(id) for id in tok.encode(text)]
    assert all(len(after) == len(before) - 1 for before, after in pairwise(states))
    assert all(b"".join(state) == text.encode() for state in states)


# --- names ---


@pytest.mark.parametrize(("spec", "parsed"), [("gpt2", ("gpt2", None)), ("bpe:1024", ("bpe", 1024))])
def test_a_tokenizer_is_named_gpt2_or_bpe_with_a_size(spec: str, parsed: tuple[str, int | None]) -> None:
    assert parse_spec(spec) == parsed


@pytest.mark.parametrize("spec", ["", "gpt3", "bpe", "bpe:", "bpe:x", "bpe:-5", "bpe:1e3", "BPE:512", "bpe:512 "])
def test_any_other_name_is_answered_with_the_two_forms(spec: str) -> None:
    with pytest.raises(UserError, match="'gpt2' or 'bpe:N'"):
        parse_spec(spec)


def test_a_size_below_bytes_and_specials_is_refused() -> None:
    with pytest.raises(UserError, match="'bpe:261'"):
        parse_spec("bpe:260")
    with pytest.raises(UserError, match="'bpe:261'"):
        train_bpe(["text"], 260)


# --- GPT-2 ---


def _gpt2_is_here() -> bool:
    """Whether tiktoken has cached GPT-2's files, so that no network is needed."""
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or Path(tempfile.gettempdir()) / "data-gym-cache")
    return all((folder / hashlib.sha1(url.encode()).hexdigest()).is_file() for url in tokenizer.GPT2_FILES)


@pytest.mark.skipif(not _gpt2_is_here(), reason="GPT-2's vocabulary is not in tiktoken's cache")
def test_gpt2_ids_are_the_published_ones() -> None:
    tok, published = tokenizer.gpt2(), tiktoken.get_encoding("gpt2")
    for text in [*ODD, PROSE]:
        assert tok.encode(text) == published.encode_ordinary(text), text
    assert (tok.eot, tok.vocab_size) == (50256, 50261)


@pytest.fixture
def fresh_gpt2():
    tokenizer.gpt2.cache_clear()
    yield
    tokenizer.gpt2.cache_clear()


def test_gpt2_keeps_published_ids_and_adds_four_specials(fresh_gpt2, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([byte]): 255 - byte for byte in range(256)} | {b"ab": 256}
    published = tiktoken.Encoding(
        "gpt2", pat_str=r"\s+(?!\S)|\S+|\s", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 257}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", {"gpt2": published}.__getitem__)
    tok = tokenizer.gpt2()
    assert tok.encode("abz  a") == published.encode_ordinary("abz  a")
    assert (tok.eot, tok.context, tok.user, tok.assistant, tok.end) == (257, 258, 259, 260, 261)
    assert tok.decode(tok.encode(" " * 1_000_000)) == " " * 1_000_000


@pytest.mark.parametrize("error", [ConnectionError("no route"), ValueError("Hash mismatch")])
def test_without_gpt2_files_the_error_names_them_and_where_to_put_them(
    fresh_gpt2, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError) as caught:
        tokenizer.gpt2()
    message = str(caught.value)
    for url in tokenizer.GPT2_FILES:
        assert f"{url} as {hashlib.sha1(url.encode()).hexdigest()}" in message
    assert "vocab.bpe" in message and "encoder.json" in message and "TIKTOKEN_CACHE_DIR" in message
    assert "\n" not in message


def test_importing_the_tokenizer_needs_no_network() -> None:
    program = (
        "import socket\n"
        "def refuse(*args): raise AssertionError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "import nanochat.tokenizer"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- kept ---


def test_a_saved_tokenizer_is_loaded_as_it_was(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.name, loaded.fingerprint) == (tok.name, tok.fingerprint)
    assert loaded.encode(PROSE) == tok.encode(PROSE)
    ranks = load_tiktoken_bpe(str(tmp_path / "tokenizer.tiktoken"))
    assert ranks == tok.ranks


def test_the_state_is_plain_and_gives_an_equal_tokenizer(tok: Tokenizer) -> None:
    state = json.loads(json.dumps(tok.to_state()))
    again = Tokenizer.from_state(state)
    assert again.fingerprint == tok.fingerprint and again.encode(PROSE) == tok.encode(PROSE)


def test_files_of_two_tokenizers_are_told_apart(tok: Tokenizer, tmp_path: Path) -> None:
    tok.save(tmp_path)
    other = train_bpe([PROSE[::-1]], 400)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "tokenizer.tiktoken").replace(tmp_path / "tokenizer.tiktoken")
    with pytest.raises(UserError, match=f"has fingerprint .* names {tok.fingerprint}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", None),
        ("tokenizer.tiktoken", None),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "[]"),
        ("tokenizer.json", '{"name": "x"}'),
        ("tokenizer.tiktoken", "no such line"),
        ("tokenizer.tiktoken", "//8= 5\n"),
        ("tokenizer.tiktoken", "ungültig"),
    ],
)
def test_a_missing_or_damaged_file_is_one_clear_error(
    tok: Tokenizer, tmp_path: Path, file: str, content: str | None
) -> None:
    tok.save(tmp_path)
    (tmp_path / file).unlink()
    if content is not None:
        (tmp_path / file).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match="prepare the corpus again"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("key", ["name", "pattern", "specials", "ranks"])
def test_a_state_without_a_part_is_refused(tok: Tokenizer, key: str) -> None:
    state = tok.to_state()
    del state[key]
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.from_state(state)
