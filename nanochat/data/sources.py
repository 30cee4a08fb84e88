"""Where text comes from: corpora and question/answer sets by name, path or URL.

How files are downloaded is in download.py, how they become documents in textfiles.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from ..config import UserError, unknown
from ..paths import data_dir, safe_name
from .download import fetch, sha256
from .textfiles import Piece, read_pieces

if TYPE_CHECKING:
    from .questions import Conversation

__all__ = [
    "ALMANAC", "CORPORA", "QA_SETS", "Source", "corpus_name", "documents", "locate", "pieces", "source_of"
]  # fmt: skip

ALMANAC = "almanac"


@dataclass(frozen=True)
class Source:
    """One named corpus or question/answer set. `lines` > 0: a document is so many lines of the file.

    `sha256` is that of the file at `url`, for files that never change.
    """

    name: str
    url: str  # "" for what is generated here
    about: str
    lines: int = 0
    sha256: str = ""

    @property
    def file_name(self) -> str:
        """What it is called in data/downloads/."""
        suffixes = re.findall(r"\.[a-z]+", PurePosixPath(urlsplit(self.url).path).name.lower())
        return self.name + "".join(suffixes)


_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data"
_GUTENBERG = "https://www.gutenberg.org"
_OPUS = "https://object.pouta.csc.fi/OPUS-Tatoeba/v2023-04-12/mono"
_STORIES = "https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main"
_SQUAD = "https://rajpurkar.github.io/SQuAD-explorer/dataset"
_ALPACA = "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main"

_CORPORA = (
    Source(ALMANAC, "", "facts, passages, small talk and stories, generated here; the default"),
    Source(
        "tiny_shakespeare",
        f"{_CHAR_RNN}/tinyshakespeare/input.txt",
        "plays of Shakespeare, 1 MB",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
    Source("sherlock_holmes", f"{_GUTENBERG}/files/1661/1661-0.txt", "Conan Doyle's Adventures, 0.6 MB"),
    Source("pride_and_prejudice", f"{_GUTENBERG}/cache/epub/1342/pg1342.txt", "Austen's novel, 0.8 MB"),
    Source("dracula", f"{_GUTENBERG}/files/345/345-0.txt", "Stoker's novel, 0.9 MB"),
    Source("moby_dick", f"{_GUTENBERG}/files/2701/2701-0.txt", "Melville's novel, 1.3 MB"),
    Source("norvig_big_text", "https://norvig.com/big.txt", "several books in one file, 6 MB"),
    Source("OpenSubtitles2018", f"{_OPUS}/en.txt.gz", "lines of film subtitles, many GB", lines=100),
    Source("TinyStories", f"{_STORIES}/TinyStoriesV2-GPT4-train.txt", "2.7 million short stories, 2 GB"),
)
_QA_SETS = (
    Source(ALMANAC, "", "questions about the almanac, with held-out splits; the default"),
    Source(
        "squad_v2",
        f"{_SQUAD}/train-v2.0.json",
        "130,000 questions about passages, 40 MB",
        sha256="68dcfbb971bd3e96d5b46c7177b16c1a4e7d4bdef19fb204502738552dede002",
    ),
    Source(
        "squad_v2_dev",
        f"{_SQUAD}/dev-v2.0.json",
        "12,000 questions about passages, 4 MB",
        sha256="80a5225e94905956a6446d296ca1093975c4d3b3260f1d6c8f68bc2ab77182d8",
    ),
    Source(
        "alpaca",
        f"{_ALPACA}/alpaca_data.json",
        "52,000 instructions with answers, 23 MB",
        sha256="2eddafc6b977608d778aaab8dfc7e50e547b3af9826dfb9e909d9fc362e4a419",
    ),
)
CORPORA = {source.name: source for source in _CORPORA}
QA_SETS = {source.name: source for source in _QA_SETS}


def _is_url(spec: str) -> bool:
    return "://" in spec


def _url_file(url: str) -> str:
    return unquote(PurePosixPath(urlsplit(url).path).name)


def corpus_name(spec: str, registry: dict[str, Source] = CORPORA) -> str:
    """The name of a corpus or set, from which its folder under data/ has its own: the registered name, else the name
    of the file.

    A file keeps its name without the suffix where that can be a folder and is still free. Where characters are lost, or
    the folder was made from another file, a hash of what was lost, or of the path, tells the two apart: nobody's data
    are replaced by those of a file that happens to have the same name. Raises UserError for a name that is not
    registered, and for a path where no file is.
    """
    if spec in registry:
        return spec
    file = _url_file(spec) if _is_url(spec) else _local(spec, registry).name
    stem = re.sub(r"(\.(txt|text|md|jsonl?|ndjson))?(\.gz)?$", "", file, flags=re.IGNORECASE).lstrip(".")
    safe = re.sub(r"[^A-Za-z0-9_.-]+", "_", stem).strip("_-.")[:60].rstrip("_-.") or "corpus"
    if safe != stem:
        safe += f"_{_short_hash(unicodedata.normalize('NFC', stem))}"  # file systems differ in how they store an é
    if safe.casefold() in _NOT_FOR_FILES:
        safe += "_file"
    kind = "" if registry is CORPORA else "_qa"
    source = source_of(spec, registry)
    own = f"{safe}_{_short_hash(source)}"
    if (data_dir(own + kind) / "meta.json").is_file() or _is_of_another(data_dir(safe + kind), source):
        return own
    return safe_name(safe, "corpus")


# Folders under data/ that are somebody else's, whatever the case: on some systems that is one folder
_NOT_FOR_FILES = {"downloads", "feedback"}
_NOT_FOR_FILES |= {(name + kind).casefold() for name in (*CORPORA, *QA_SETS) for kind in ("", "_qa")}


def source_of(spec: str, registry: dict[str, Source] = CORPORA) -> str:
    """What meta.json says a folder was made from: a registered name, a URL, or a path that holds from everywhere."""
    return spec if spec in registry or _is_url(spec) else os.path.abspath(Path(spec).expanduser())


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _is_of_another(folder: Path, source: str) -> bool:
    """Whether something was prepared in `folder` from another source; a moved file is known by its content."""
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    if not isinstance(meta, dict) or source in (meta.get("corpus"), meta.get("qa")):
        return False
    return not os.path.isfile(source) or meta.get("source_fingerprint") != sha256(Path(source))[:16]


def locate(spec: str, registry: dict[str, Source] = CORPORA) -> Path | None:
    """The file of a corpus or set, downloaded first if need be; None for what is generated here.

    Raises UserError for an unknown name, a missing file, or a download that fails.
    """
    downloads = data_dir("downloads")
    if source := registry.get(spec):
        return fetch(source.url, downloads, source.file_name, expected=source.sha256) if source.url else None
    if _is_url(spec):
        # Many a file on the net is called input.txt
        name = hashlib.sha256(spec.encode()).hexdigest()[:8] + "-" + _url_file(spec)[-60:]
        return fetch(spec, downloads, re.sub(r"[^A-Za-z0-9_.-]+", "_", name))
    return _local(spec, registry)


def _local(spec: str, registry: dict[str, Source]) -> Path:
    path = Path(spec).expanduser()
    if path.is_file():
        return path
    kind = "corpus" if registry is CORPORA else "question/answer set"
    if path.is_dir():
        raise UserError(f"{spec} is a folder; give the path of one file as the {kind}")
    if re.fullmatch(r"[\w-]+", spec):
        raise UserError(f"{unknown(kind, spec, registry)}; or give the path of a file, or a URL")
    raise UserError(f"there is no file {spec!r}; check the path, or take one of: {', '.join(registry)}")


def documents(spec: str, *, size: str = "default", seed: int = 0) -> Iterator[str | Conversation]:
    """The documents of a corpus, one at a time; `size` and `seed` are the almanac's. Raises what `pieces`
    does.
    """
    parts: list[str] = []
    for piece in pieces(spec, size=size, seed=seed):
        if piece.first and parts:
            yield "".join(parts)
            parts = []
        if isinstance(piece.text, str):
            parts.append(piece.text)
        else:
            yield piece.text
    if parts:
        yield "".join(parts)


def pieces(spec: str, *, size: str = "default", seed: int = 0) -> Iterator[Piece]:
    """The same in pieces (see textfiles.py), for memory that does not grow with the longest document.

    Raises UserError for an unknown name, a failed download, and whatever is wrong with the file.
    """
    path = locate(spec)
    if path is not None:
        yield from read_pieces(path, CORPORA[spec].lines if spec in CORPORA else 0)
        return
    from . import almanac

    for document in almanac.pretrain_documents(size, seed):
        yield Piece(document, first=True)
