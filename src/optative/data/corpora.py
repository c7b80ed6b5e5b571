"""Texts that a user has already: those of Python, of installed packages, of two Debian packages, and made-up ones.

Knows: where such texts lie and what their source is called. Does not know: tokens, models, train and test splits.
Nothing is imported, run or downloaded: files are read as text. The files of a corpus come in a fixed order that is
keyed by their names, so that its first documents are a sample of all; a text of more than `PIECE` characters comes in
pieces that end at a blank line; a text that was there before is left out. What a corpus holds depends on the versions
that are installed.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
import textwrap
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

from optative.core.errors import InputError, unknown
from optative.core.ids import content_hash
from optative.data.invented import grumbles

PIECE = 1000  # characters: about as many as a small model sees at once
_NOT_OURS = {"site-packages", "dist-packages", "test", "tests", "testing", "_vendor", "__pycache__", "idle_test"}
_FORTUNES, _WORDNET = Path("/usr/share/games/fortunes"), Path("/usr/share/wordnet")


@dataclass(frozen=True, slots=True)
class Document:
    """`source`: the module, package or file that it comes from, what a reader would name. `id`: unique in a corpus."""

    text: str
    source: str
    id: str


def corpus(name: str) -> Iterator[Document]:
    """The documents of a corpus of `CORPORA`, one by one, always in the same order.

    Raises InputError for an unknown name, and when the package that brings the texts is not installed.
    """
    if name not in CORPORA:
        raise InputError(unknown("corpus", name, CORPORA), field="corpus")
    return _once(CORPORA[name]())


def _once(documents: Iterable[Document]) -> Iterator[Document]:
    """In pieces, without texts that came before: many packages carry the same licence."""
    seen: set[str] = set()
    for document in documents:
        whole = document.text.encode("utf-8", "replace").decode()  # a literal of Python can hold half a character
        for number, text in enumerate(pieces(whole)):
            if text not in seen:
                seen.add(text)
                yield Document(text, document.source, f"{document.id}#{number}" if number else document.id)


def pieces(text: str) -> list[str]:
    """Paragraphs joined into texts of at most `PIECE` characters; a longer paragraph stays whole. Line ends become LF.

    >>> [len(piece) for piece in pieces("a" * 600 + "\\n\\n" + "b" * 300 + "\\n\\n" + "c" * 300)]
    [902, 300]
    """
    found: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip()):
        paragraph = paragraph.strip("\n").rstrip()
        if found and len(found[-1]) + 2 + len(paragraph) <= PIECE:
            found[-1] += "\n\n" + paragraph
        elif paragraph:
            found.append(paragraph)
    return found


# -------------------- Python and its packages


def _topics() -> Iterator[Document]:
    """The language reference that `help()` shows."""
    from pydoc_data.topics import topics

    for name in _shuffled(topics):
        yield Document(topics[name], name, name)


def _docstrings(package: str) -> Iterator[Document]:
    for module, _, tree in _modules(package):
        for name, node in _definitions(tree, module):
            if text := ast.get_docstring(node):
                yield Document(text, module, name)


def _code(package: str) -> Iterator[Document]:
    """Functions and methods, each with its docstring."""
    for module, source, tree in _modules(package):
        lines = source.splitlines()
        for name, node in _definitions(tree, module):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield Document(textwrap.dedent("\n".join(lines[node.lineno - 1 : node.end_lineno])), module, name)


def _files(package: str, pattern: str) -> Iterator[Document]:
    folder = _folder(package)
    for path in _shuffled_paths(folder.rglob(pattern), folder):
        name = path.relative_to(folder).as_posix()
        yield Document(_read(path), name, name)


def _readmes() -> Iterator[Document]:
    for name, distribution in _distributions():
        about = distribution.metadata
        body = about.get_payload() if hasattr(about, "get_payload") else ""  # where packages put it nowadays
        text = body if isinstance(body, str) and body.strip() else "Description" in about and about["Description"]
        if text:
            yield Document(text, name, name)


def _licences() -> Iterator[Document]:
    for name, distribution in _distributions():
        for file in sorted(distribution.files or [], key=str):
            path = Path(str(distribution.locate_file(file)))
            if re.match(r"(?i)(licen[cs]e|copying|notice)", file.name) and path.suffix != ".py" and path.is_file():
                yield Document(_read(path), name, f"{name}/{file}")


def _distributions() -> Iterator[tuple[str, metadata.Distribution]]:
    found = {str(one.metadata["Name"]).lower(): one for one in metadata.distributions() if one.metadata["Name"]}
    for name in _shuffled(found):
        yield name, found[name]


def _modules(package: str) -> Iterator[tuple[str, str, ast.Module]]:
    """Dotted name, source and tree of each module of a package, or of the standard library (`python`)."""
    folder = Path(sysconfig.get_paths()["stdlib"]) if package == "python" else _folder(package)
    own = (path for path in folder.rglob("*.py") if not _NOT_OURS & set(path.relative_to(folder).parts))
    for path in _shuffled_paths(own, folder):
        inside = path.relative_to(folder).with_suffix("").parts
        source = _read(path)
        try:
            with warnings.catch_warnings():  # of other people's code
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError):  # templates of code, and files for other versions
            continue
        parts = inside if package == "python" else (package, *inside)
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), source, tree


Definition = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _definitions(tree: ast.Module, module: str) -> Iterator[tuple[str, Definition]]:
    """The module, its classes and functions and their methods; a name that comes again has its line behind it."""
    seen = {module}
    yield module, tree
    waiting: list[tuple[str, Definition]] = [(module, tree)]
    while waiting:
        prefix, node = waiting.pop(0)
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = f"{prefix}.{child.name}"
                name = f"{name}:{child.lineno}" if name in seen else name
                seen.add(name)
                yield name, child
                if isinstance(child, ast.ClassDef):
                    waiting.append((name, child))


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)  # of a name without dots: imports nothing
    if spec is None or spec.origin is None:
        raise InputError(f"this corpus is part of the package {package}, which is not installed", field="corpus")
    return Path(spec.origin).parent


def _shuffled(names: Iterable[str]) -> list[str]:
    return sorted(names, key=content_hash)


def _shuffled_paths(paths: Iterable[Path], folder: Path) -> list[Path]:
    return sorted(paths, key=lambda path: content_hash(path.relative_to(folder).as_posix()))


def _read(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


def _characters() -> Iterator[Document]:
    """Names of the characters of Unicode, forty consecutive ones a document, capitals as they are."""
    names = [(code, unicodedata.name(chr(code), "")) for code in range(0x20, 0x20000)]
    kept = [(code, name) for code, name in names if name and not name.startswith(("CJK", "HANGUL SYLLABLE", "TANGUT"))]
    starts = {f"U+{kept[at][0]:04X}": at for at in range(0, len(kept), 40)}
    for start in _shuffled(starts):
        at = starts[start]
        yield Document("\n".join(name for _, name in kept[at : at + 40]), kept[at][1].split()[0].lower(), start)


def _grumbles() -> Iterator[Document]:
    for number, text in enumerate(grumbles()):
        yield Document(text, "grumbles", str(number))


# -------------------- Debian packages


def _fortunes() -> Iterator[Document]:
    """Sayings; the source is the name of their file."""
    folder = _debian(_FORTUNES, "fortunes")
    files = (path for path in folder.rglob("*") if path.is_file() and not path.suffix and not path.is_symlink())
    for path in _shuffled_paths(files, folder):
        for number, text in enumerate(re.split(r"(?m)^%\n?", _read(path))):
            if text.strip():
                yield Document(text.strip("\n"), path.name, f"{path.name}/{number}")


def _wordnet() -> Iterator[Document]:
    """Each sense as `word: gloss`; the source is its part of speech."""
    folder = _debian(_WORDNET, "wordnet-base")
    for kind in ("adj", "adv", "noun", "verb"):
        for line in _read(folder / f"data.{kind}").splitlines():
            if not line.startswith(" ") and " | " in line:  # the licence on top is indented
                fields, gloss = line.split(" | ", 1)
                words = fields.split(" ")
                yield Document(f"{words[4].replace('_', ' ')}: {gloss.strip()}", kind, f"{kind}/{words[0]}")


def _debian(folder: Path, package: str) -> Path:
    if not folder.is_dir():
        raise InputError(
            f"this corpus is the Debian package {package}, which is not installed",
            file=folder,
            field="corpus",
            hint=f"`apt-get install {package}` brings it; other corpora: {', '.join(sorted(CORPORA)[:3])}, ...",
        )
    return folder


CORPORA: dict[str, Callable[[], Iterator[Document]]] = {
    "python-reference": _topics,
    "python-docstrings": partial(_docstrings, "python"),
    "python-code": partial(_code, "python"),
    "matplotlib-docstrings": partial(_docstrings, "matplotlib"),
    "networkx-docstrings": partial(_docstrings, "networkx"),
    "numpy-docstrings": partial(_docstrings, "numpy"),
    "scipy-docstrings": partial(_docstrings, "scipy"),
    "sympy-docstrings": partial(_docstrings, "sympy"),
    "torch-docstrings": partial(_docstrings, "torch"),
    "transformers-docstrings": partial(_docstrings, "transformers"),
    "torch-headers": partial(_files, "torch", "*.h"),
    "arrow-cython": partial(_files, "pyarrow", "*.pyx"),
    "package-readmes": _readmes,
    "package-licences": _licences,
    "unicode-names": _characters,
    "grumbles": _grumbles,
    "fortunes": _fortunes,
    "wordnet-glosses": _wordnet,
}
