"""Where text comes from: `resolve` turns the name, path or URL of a corpus or a question/answer set into a Source.

Nothing else interprets what a person typed. download.py downloads files, textfiles.py splits them into documents, and
conversation.py reads conversations from them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import unquote, urlsplit

from ..config import UserError, unknown
from ..paths import data_dir, safe_name
from .conversation import Conversation, read_qa
from .download import fetch, sha256
from .textfiles import Piece, read_pieces

__all__ = ["ALMANAC", "CORPORA", "QA_SETS", "Entry", "Kind", "Source", "documents", "resolve"]

ALMANAC = "almanac"
Kind = Literal["corpus", "qa"]


@dataclass(frozen=True)
class Entry:
    """One registered corpus or question/answer set. `lines` > 0: each document is that many lines of the file.

    `sha256` is the hash of the file at `url`, for files that never change.
    """

    name: str
    url: str  # "" if it is generated
    about: str
    lines: int = 0
    sha256: str = ""

    @property
    def file_name(self) -> str:
        """Its name in data/downloads/."""
        suffixes = re.findall(r"\.[a-z]+", PurePosixPath(urlsplit(self.url).path).name.lower())
        return self.name + "".join(suffixes)


_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data"
_GUTENBERG = "https://www.gutenberg.org"
_OPUS = "https://object.pouta.csc.fi/OPUS-Tatoeba/v2023-04-12/mono"
_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_ALPACA = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main"

_CORPORA = (
    Entry(ALMANAC, "", "facts, passages, small talk and stories, generated here; the default"),
    Entry(
        "tiny_shakespeare",
        f"{_CHAR_RNN}/tinyshakespeare/input.txt",
        "plays of Shakespeare, 1 MB",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    Entry("sherlock_holmes", f"{_GUTENBERG}/files/1661/1661-0.txt", "Conan Doyle's Adventures, 0.6 MB"),
    Entry("pride_and_prejudice", f"{_GUTENBERG}/cache/epub/1342/pg1342.txt", "Austen's novel, 0.8 MB"),
    Entry("dracula", f"{_GUTENBERG}/files/345/345-0.txt", "Stoker's novel, 0.9 MB"),
    Entry("moby_dick", f"{_GUTENBERG}/files/2701/2701-0.txt", "Melville's novel, 1.3 MB"),
    Entry("norvig_big_text", "https://norvig.com/big.txt", "several books in one file, 6 MB"),
    Entry("OpenSubtitles2018", f"{_OPUS}/en.txt.gz", "lines of film subtitles, many GB", lines=100),
    Entry("TinyStories", f"{_STORIES}/TinyStoriesV2-GPT4-train.txt", "2.7 million short stories, 2 GB"),
)
_QA_SETS = (
    Entry(ALMANAC, "", "questions about the almanac, with held-out splits; the default"),
    Entry(
        "squad_v2",
        f"{_SQUAD}/train-v2.0.json",
        "130,000 questions about passages, 40 MB",
        sha256="68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    ),
    Entry(
        "squad_v2_dev",
        f"{_SQUAD}/dev-v2.0.json",
        "12,000 questions about passages, 4 MB",
        sha256="80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    ),
    Entry(
        "alpaca",
        f"{_ALPACA}/alpaca_data.json",
        "52,000 instructions with answers, 23 MB",
        sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
    ),
)
CORPORA = {entry.name: entry for entry in _CORPORA}
QA_SETS = {entry.name: entry for entry in _QA_SETS}
_REGISTRIES: dict[Kind, dict[str, Entry]] = {"corpus": CORPORA, "qa": QA_SETS}


@dataclass(frozen=True)
class Source:
    """A corpus or a question/answer set: its name, its origin and its content.

    `name` is the registered name or that of the file. `origin`, which meta.json records, is the registered name, the URL,
    or an absolute path. `size` and `seed` are for the almanac, which is generated.
    """

    kind: Kind
    name: str
    origin: str
    file: Path | None = None  # where it is or will be downloaded to; None if it is generated
    url: str = ""  # "" if it is a local file or generated
    sha256: str = ""  # the hash a download must have; "" for any
    lines: int = 0  # > 0: each document is that many lines of the file
    size: str = "default"
    seed: int = 0

    @property
    def folder(self) -> Path:
        """The folder that it is prepared in."""
        return _folder(self.kind, self.name)

    @functools.cached_property
    def path(self) -> Path | None:
        """The file, downloaded if necessary; None if it is generated. Raises UserError if a download fails."""
        if self.file is None or not self.url:
            return self.file
        return fetch(self.url, self.file.parent, self.file.name, expected=self.sha256)

    @functools.cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of a hash of everything that determines its content. Raises UserError as `path` does."""
        if self.path is not None:
            return sha256(self.path)[:16]
        from . import almanac

        digest = hashlib.sha256(f"{self.size} {self.seed}".encode())
        root = Path(almanac.__file__).parent
        for file in sorted(file for file in root.rglob("*") if file.suffix in (".py", ".tsv", ".txt")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
        return digest.hexdigest()[:16]

    def pieces(self) -> Iterator[Piece]:
        """The documents of a corpus in pieces (see textfiles.py), so that a long document does not need much memory.

        Raises UserError for a failed download or a file that cannot be read.
        """
        if self.path is not None:
            yield from read_pieces(self.path, self.lines)
            return
        from . import almanac

        for document in almanac.pretrain_documents(self.size, self.seed):
            yield Piece(document, first=True)

    def documents(self) -> Iterator[str | Conversation]:
        """The documents of a corpus, one at a time. Raises UserError as `pieces` does."""
        parts: list[str] = []
        for piece in self.pieces():
            if piece.first and parts:
                yield "".join(parts)
                parts = []
            if isinstance(piece.text, str):
                parts.append(piece.text)
            else:
                yield piece.text
        if parts:
            yield "".join(parts)

    def conversations(self) -> Iterator[Conversation]:
        """The conversations of a question/answer set, one at a time. Raises UserError as `pieces` does."""
        if self.path is not None:
            return read_qa(self.path)
        from . import almanac

        return almanac.conversations(self.size, self.seed)


def resolve(spec: str | Source, kind: Kind = "corpus", *, size: str = "default", seed: int = 0) -> Source:
    """The corpus or question/answer set of a registered name, a path or a URL; a Source is returned as it is.

    Nothing is downloaded yet. `size` and `seed` are for the almanac. Raises UserError for an unknown name or a missing file.
    """
    if isinstance(spec, Source):
        return spec
    made = functools.partial(Source, kind, size=size, seed=seed)
    if entry := _REGISTRIES[kind].get(spec):
        file = data_dir("downloads") / entry.file_name if entry.url else None
        return made(spec, spec, file, entry.url, entry.sha256, entry.lines)
    if "://" in spec:
        base = unquote(PurePosixPath(urlsplit(spec).path).name)
        # many files on the web have the same name, such as input.txt
        kept = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{_short_hash(spec)}-{base[-60:]}")
        return made(_name(kind, base, spec), spec, data_dir("downloads") / kept, spec)
    file = _local(spec, kind)
    origin = os.path.abspath(file)
    return made(_name(kind, file.name, origin), origin, Path(origin))


def documents(corpus: str | Source, *, size: str = "default", seed: int = 0) -> Iterator[str | Conversation]:
    """The documents of a corpus, given as for `resolve`. Raises UserError as `resolve` and `pieces` do."""
    return resolve(corpus, size=size, seed=seed).documents()


def _local(spec: str, kind: Kind) -> Path:
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    registry, called = _REGISTRIES[kind], "corpus" if kind == "corpus" else "question/answer set"
    if path.is_dir():
        raise UserError(f"{spec} is a folder; give the path of one file as the {called}")
    if re.fullmatch(r"[\w-]+", spec):
        raise UserError(f"{unknown(called, spec, registry)}; or give the path of a file, or a URL")
    raise UserError(f"there is no file {spec!r}; check the path, or take one of: {', '.join(registry)}")


def _name(kind: Kind, file: str, origin: str) -> str:
    """The name of a file as a source, which is also that of its folder under data/.

    It is the file's name without its suffix, if a folder can have that name and no other file has used it. Otherwise a hash
    of the full name or of the origin is appended, so that a file never replaces the data of another with the same name.
    """
    stem = re.sub(r"(\.(txt|text|md|jsonl?|ndjson))?(\.gz)?$", "", file, flags=re.IGNORECASE).lstrip(".")
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_-.")[:60].rstrip("_-.") or "corpus"
    if safe != stem:
        safe += f"_{_short_hash(unicodedata.normalize('NFC', stem))}"  # file systems differ in how they store an é
    if safe.casefold() in _NOT_FOR_FILES:
        safe += "_file"
    own = f"{safe}_{_short_hash(origin)}"
    if (_folder(kind, own) / "meta.json").is_file() or _is_of_another(_folder(kind, safe), origin):
        return own
    return safe_name(safe, "corpus")


def _folder(kind: Kind, name: str) -> Path:
    """The folder that a source is prepared in: that of a question/answer set ends in _qa, unless only a set has its name."""
    return data_dir(name if kind == "corpus" or name in QA_SETS.keys() - CORPORA.keys() else f"{name}_qa")


# Folders under data/ that are somebody else's, whatever the case: on some systems that is one folder
_NOT_FOR_FILES = {"downloads", "feedback"}
_NOT_FOR_FILES |= {(name + kind).casefold() for name in (*CORPORA, *QA_SETS) for kind in ("", "_qa")}


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _is_of_another(folder: Path, origin: str) -> bool:
    """Whether something was prepared in `folder` from another source; a moved file is known by its content."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(meta, dict) or origin in (meta.get("corpus"), meta.get("qa")):
        return False
    return not os.path.isfile(origin) or meta.get("source_fingerprint") != sha256(Path(origin))[:16]
