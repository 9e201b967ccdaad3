"""What is to be solved: lines of JSON, a CSV table, or a folder of images become tasks, or rejects with a reason."""

from __future__ import annotations

import codecs
import csv
import hashlib
import json
import os
import re
import sys
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import attrs

from ucaptcha_async.cli.connection import check_stdin
from ucaptcha_async.cli.exits import CommandError, Exit
from ucaptcha_async.cli.kinds import build, json_value
from ucaptcha_async.errors import InvalidTaskError
from ucaptcha_async.tasks import Task

from .lines import CHUNK, LONGEST, Line, Reader, Utf8, count_lines

Format = Literal["jsonl", "csv", "images"]

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp"})
LARGEST_IMAGE = 8 * 1024 * 1024
LONGEST_KEY = 500
MOST_LINES = 1_000
"""Lines of one record of a table: a quote that is never closed must not swallow the rest of the file."""


@attrs.frozen(kw_only=True)
class Item:
    """One job.

    Attributes:
        key: Its name in the output and in the journal.
        task: What to solve.
        place: Where it stood in the input: `{"line": 12}` or `{"file": "a.png"}`.
    """

    key: str
    task: Task[Any]
    place: Mapping[str, object]


@attrs.frozen(kw_only=True)
class Reject:
    """Something in the input that is no task.

    Attributes:
        place: Where it stood in the input.
        reason: Why, in words.
        text: What it said, if the input cannot be read again.
    """

    place: Mapping[str, object]
    reason: str
    text: str | None = None

    def as_json(self) -> dict[str, object]:
        """As a line of the rejects file."""
        kept = {} if self.text is None else {"text": self.text}
        return {**self.place, "reason": self.reason, **kept}


@attrs.frozen(kw_only=True)
class Defaults:
    """What holds for all items that do not say otherwise.

    Attributes:
        type: The type of tasks.
        fields: Their fields.
    """

    type: str | None = None
    fields: Mapping[str, object] = attrs.field(factory=dict)


class Source:
    """An input.

    Attributes:
        blank: How many lines were neither items nor rejects.
    """

    def __init__(self, defaults: Defaults) -> None:
        self.defaults = defaults
        self.blank = 0

    @abstractmethod
    def items(self) -> AsyncIterator[Item | Reject]:
        """All there is, in order."""
        raise NotImplementedError

    def count(self) -> int | None:
        """How many lines or files there are, blank ones included; `None` if only the end will tell."""
        return None

    def stop(self) -> None:
        """Read no more."""
        raise NotImplementedError


class LineSource(Source):
    """An input of lines: a file, or standard input.

    Args:
        path: The file; `None` for standard input.
        defaults: What holds for all items that do not say otherwise.
    """

    def __init__(self, path: Path | None, defaults: Defaults) -> None:
        super().__init__(defaults)
        self.path = path
        self._unit = "line"
        self._reader: Reader | None = None
        self._stopped = False

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True
        if self._reader is not None:
            self._reader.stop()

    def count(self) -> int | None:
        """How many lines there are."""
        return None if self.path is None or not self.path.is_file() else count_lines(self.path)

    @contextmanager
    def _open(self) -> Iterator[Reader]:
        with _descriptor(self.path) as fd:
            self._reader = Reader(fd)
            if self._stopped:
                self._reader.stop()
            yield self._reader

    def _no_urls(self, text: bytes | str) -> None:
        """Refuse an input that begins with a URL, which is no task and names no fields."""
        begin = text.decode(errors="replace") if isinstance(text, bytes) else text
        if _URL.match(begin):
            name = "standard input" if self.path is None else repr(str(self.path))
            raise CommandError(
                f"{name} is a list of URLs, and a page alone is no task: make it a table by the first line "
                "website_url, and give what all share by --type and --set website_key=…"
            )

    def _reject(self, number: int, reason: str, text: bytes | None = None) -> Reject:
        kept = None if self.path is not None or text is None else text[:10_000].decode(errors="replace")
        return Reject(place={self._unit: number}, reason=reason, text=kept)

    def _item(self, number: int, text: bytes, given: dict[str, object]) -> Item | Reject:
        try:
            key = _key(given) or f"#{number}-{_digest(text)}"
            return Item(key=key, task=_task(given, self.defaults), place={self._unit: number})
        except InvalidTaskError as error:
            return self._reject(number, error.message, text)


class JsonLines(LineSource):
    """JSON objects, one a line or in one array: `{"type": "turnstile", "website_url": …, "website_key": …}`."""

    def count(self) -> int | None:
        """How many lines there are; `None` for an array."""
        if self.path is None or not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            begin = Utf8()(file.read(CHUNK))
        return None if _ARRAY.match(begin) else count_lines(self.path)

    async def items(self) -> AsyncIterator[Item | Reject]:
        """All objects, in order."""
        with self._open() as reader:
            array = await reader.begins_with(_ARRAY, _ENOUGH)
            async for item in self._array(reader.chunks()) if array else self._lines(reader.lines()):
                yield item

    async def _lines(self, lines: AsyncIterator[Line]) -> AsyncIterator[Item | Reject]:
        first = True
        async for line in lines:
            if line.text is None:
                yield self._reject(line.number, f"the line is longer than {LONGEST:,} bytes")
            elif not (text := line.text.strip()):
                self.blank += 1
            else:
                if first:
                    self._no_urls(text)
                yield self._read(line.number, text)
                first = False

    async def _array(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[Item | Reject]:
        self._unit, number = "item", 0
        decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        text = ""
        async for chunk in chunks:
            text += decode(chunk)
            if number == 0:
                text = text.lstrip().removeprefix("[")
            at = 0
            while (found := _ITEM.match(text, at)) is not None and (
                end := _end_of_value(text, found.end())
            ) is not None:
                number += 1
                value = text[found.end() : end]
                if number == 1:
                    self._no_urls(value.lstrip('"'))
                yield self._read(number, value.encode())
                at = end
            text = text[at:]
            if len(text) > LONGEST:
                yield self._reject(number + 1, f"not JSON, or longer than {LONGEST:,} bytes")
                return
        if not self._stopped and not _END.fullmatch(text):
            yield self._reject(number + 1, "the array is broken here: what follows is not read", text.encode())

    def _read(self, number: int, text: bytes) -> Item | Reject:
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = "a URL alone is no task" if _URL.match(text.decode(errors="replace")) else _json_problem(error)
            return self._reject(number, reason, text)
        if not isinstance(given, dict):
            return self._reject(number, f"a JSON object is wanted; this is {_json_word(given)}", text)
        return self._item(number, text, given)


_ARRAY = re.compile(rb'\s*\[\s*[{"\]]')
_ENOUGH = re.compile(rb"\s*(?:\[\s*\S|[^\s\[])")
_ITEM = re.compile(r"\s*,?\s*(?=[^\s,\]])")
_END = re.compile(r"\s*\]\s*")
_AFTER = re.compile(r"\s*[,\]]")
_URL = re.compile(r"(?i)\s*https?://")
_DECODER = json.JSONDecoder()


def _end_of_value(text: str, begin: int) -> int | None:
    """Where a JSON value in an array ends; `None` if it is not whole yet."""
    try:
        _, end = _DECODER.raw_decode(text, begin)
    except (ValueError, RecursionError):
        return None
    return end if text[end - 1] in '}]"' or _AFTER.match(text, end) else None


class Table(LineSource):
    """A CSV file whose first line names the fields. Empty cells are left out.

    Cells are parted by what parts the names: `,`, `;`, `|` or a tab. A name that ends in `:` says that its cells are
    JSON: `minScore:`.
    """

    async def items(self) -> AsyncIterator[Item | Reject]:
        """All records, in order."""
        header: list[str] | None = None
        delimiter: str | None = None
        csv.field_size_limit(LONGEST)  # an image in base64 is one cell
        with self._open() as reader:
            async for number, text in self._records(reader.lines()):
                if delimiter is None and (told := _TOLD.fullmatch(text)):
                    delimiter = told[1].decode()
                    self.blank += 1
                    continue
                if header is None:
                    self._no_urls(text)
                    delimiter = delimiter or _delimiter(text)
                    header = _header(text, delimiter)
                    self.blank += text.count(b"\n") + 1
                    continue
                if len(text) > LONGEST or text.count(b"\n") >= MOST_LINES:
                    yield self._reject(number, "the record is too long; is a quote missing?")
                    continue
                try:
                    cells = _cells(text, delimiter or ",")
                except InvalidTaskError as error:
                    self.blank += text.count(b"\n")
                    yield self._reject(number, error.message, text)
                    continue
                if not any(cells):
                    self.blank += 1
                else:
                    self.blank += text.count(b"\n")
                    yield self._read(number, text, header, cells)

    async def _records(self, lines: AsyncIterator[Line]) -> AsyncIterator[tuple[int, bytes]]:
        """Records with the number of their first line: quoted cells may hold line breaks."""
        start, held = 0, list[bytes]()
        async for line in lines:
            start = start if held else line.number
            held.append(line.text or b"")
            text = b"\n".join(held)
            if text.count(b'"') % 2 == 0 or len(held) >= MOST_LINES or len(text) > LONGEST:
                yield start, text
                held.clear()
        if held:
            yield start, b"\n".join(held)

    def _read(self, number: int, text: bytes, header: list[str], cells: list[str]) -> Item | Reject:
        if len(cells) > len(header):
            return self._reject(number, f"{len(cells)} cells, but the first line names {len(header)} fields", text)
        try:
            given = dict(_cell(name, cell) for name, cell in zip(header, cells, strict=False) if cell.strip())
        except InvalidTaskError as error:
            return self._reject(number, error.message, text)
        return self._item(number, text, given)


class Images(Source):
    """A folder of images, each an item named like its file."""

    def __init__(self, folder: Path, defaults: Defaults) -> None:
        super().__init__(attrs.evolve(defaults, type=defaults.type or "image"))
        self.folder = folder
        self._stopped = False

    def stop(self) -> None:
        """Read no more."""
        self._stopped = True

    def count(self) -> int | None:
        """How many images there are."""
        return sum(1 for _ in self._files())

    def _files(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                hidden = entry.name.startswith(".")
                if not hidden and Path(entry.name).suffix.lower() in IMAGES and entry.is_file():
                    yield entry

    async def items(self) -> AsyncIterator[Item | Reject]:
        """All images, in the order of the directory."""
        for entry in self._files():
            if self._stopped:
                return
            yield self._read(entry)

    def _read(self, entry: os.DirEntry[str]) -> Item | Reject:
        place = {"file": entry.name}
        try:
            if entry.stat().st_size > LARGEST_IMAGE:
                return Reject(place=place, reason=f"the file is larger than {LARGEST_IMAGE:,} bytes")
            data = Path(entry.path).read_bytes()
            key = f"{entry.name}#{_digest(data)}"
            return Item(key=_text_key(key), task=_task({"image": data}, self.defaults), place=place)
        except OSError as error:
            return Reject(place=place, reason=f"the file cannot be read: {error.strerror}")
        except InvalidTaskError as error:
            return Reject(place=place, reason=error.message)


def open_source(path: Path, format: Format | None, defaults: Defaults) -> Source:
    """The source for a path; `-` is standard input.

    Raises:
        CommandError: There is no such file, or it is not what the format says.
    """
    stdin = str(path) == "-"
    if not stdin and not path.exists():
        raise CommandError(f"there is no file or folder {str(path)!r}", Exit.FILE)
    folder = not stdin and path.is_dir()
    told = "images" if folder else "csv" if path.suffix.lower() in (".csv", ".tsv") else "jsonl"
    chosen = format or told
    if folder != (chosen == "images"):
        raise CommandError(f"{str(path)!r} is {'a folder' if folder else 'no folder'}: --format {chosen} cannot be")
    if stdin:
        check_stdin()
    if stdin and sys.stdin.isatty():
        raise CommandError("standard input is a terminal: give a file, or send one with '<'")
    if chosen == "images":
        return Images(path, defaults)
    return (Table if chosen == "csv" else JsonLines)(None if stdin else path, defaults)


@contextmanager
def _descriptor(path: Path | None) -> Iterator[int]:
    if path is None:
        yield sys.stdin.fileno()
        return
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise CommandError(f"the input {str(path)!r} cannot be read: {error.strerror}", Exit.FILE) from None
    try:
        yield fd
    finally:
        os.close(fd)


_TOLD = re.compile(rb"(?i)sep=([,;|\t])")
"""How a spreadsheet may say in the first line what parts the cells."""


def _delimiter(names: bytes) -> str:
    """What parts the names in the first line."""
    return max(",;\t|", key=lambda mark: names.count(mark.encode()))


def _cells(text: bytes, delimiter: str) -> list[str]:
    """The cells of a record. What cannot be read as it is meant is refused: a changed address would be paid for."""
    if b"\0" in text:
        raise InvalidTaskError("the text holds zero bytes: save it as UTF-8")
    try:
        row = csv.reader([text.decode()], delimiter=delimiter)
        return [cell for cells in row for cell in cells]
    except UnicodeDecodeError:
        raise InvalidTaskError("the text is not UTF-8: save it as UTF-8") from None
    except csv.Error:
        pass
    if re.search(rb"\r(?!\Z)", text):
        raise InvalidTaskError("a carriage return stands inside the line: end lines with a line feed")
    raise InvalidTaskError("the cells cannot be told apart; is a quote missing, or a cell too long?")


def _header(text: bytes, delimiter: str) -> list[str]:
    try:
        header = [cell.strip() for cell in _cells(text, delimiter)]
    except InvalidTaskError as error:
        raise CommandError(f"the first line of the table cannot be read: {error.message}") from None
    if not header or not all(header) or len(set(header)) < len(header):
        raise CommandError("the first line of a table must name its fields, each once")
    return header


def _cell(name: str, cell: str) -> tuple[str, object]:
    if not name.endswith(":"):
        return name, cell
    return name[:-1], json_value(name[:-1], cell)


def _task(given: Mapping[str, object], defaults: Defaults) -> Task[Any]:
    nested = given.get("task")
    if isinstance(nested, dict):
        others = given.keys() - {"task"}
        if others:
            raise InvalidTaskError(f"beside 'task' only 'key' or 'id' may stand; got {', '.join(sorted(others))[:100]}")
        given = nested
    fields = {**defaults.fields, **{name: value for name, value in given.items() if value is not None}}
    kind = fields.pop("type", defaults.type)
    if not isinstance(kind, str) or not kind:
        raise InvalidTaskError("type is missing (--type gives one to all)", field="type")
    return build(kind, fields)


def _key(given: dict[str, object]) -> str | None:
    """Take the item's own name out of its fields."""
    keys = [given.pop(name) for name in ("key", "id") if name in given]
    if not keys or keys == [None]:
        return None
    if len(keys) > 1:
        raise InvalidTaskError("'key' and 'id' are both given")
    if isinstance(keys[0], bool) or not isinstance(keys[0], str | int):
        raise InvalidTaskError("key must be text or a whole number")
    return _text_key(str(keys[0]))


def _text_key(key: str) -> str:
    try:
        key.encode()
    except UnicodeEncodeError:
        raise InvalidTaskError("key must be proper Unicode text") from None
    if not key or len(key) > LONGEST_KEY or "\0" in key:
        raise InvalidTaskError(f"key must be text of 1 to {LONGEST_KEY} characters")
    return key


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _json_problem(error: Exception) -> str:
    said = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", "not UTF-8")
    return f"not JSON: {said}"


def _json_word(value: object) -> str:
    names = {list: "a list", str: "text", bool: "a truth value", int: "a number", float: "a number", type(None): "null"}
    return names[type(value)]
