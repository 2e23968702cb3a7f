"""Files, folders and hub datasets as numbered records. Odd records are skipped, counted and named."""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import itertools
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from ..validation import InputError, expand_path

Record = dict[str, Any]
# A record's number, from 1, and the record, or what made it unreadable.
Numbered = tuple[int, Record | ValueError]

NAMED = 3  # odd records that are named; the others are counted
PATIENCE = 100  # a stream is refused once it has this many odd records and fewer good ones
SPLIT_WORD = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?:[-_./]|\d|$)")
GZIP = b"\x1f\x8b"  # what every gzip file begins with
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16's, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
WRAPPERS = ("data", "rows", "examples", "train")  # keys under which .json files keep their list of records
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class Source:
    """One of the sets that a recipe's `data` names.

    Attributes:
        path: A file, a folder, "owner/set", "owner/set:configuration", or "tinytown…".
        weight: Share of the rows drawn from this set, relative to the other weights; None for its size.
        split: Which split of a folder or hub dataset.
        column: Column of a text; None for the recipe's.
    """

    path: str
    weight: float | None = None
    split: str = "train"
    column: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.strip():
            raise InputError(f"data names the set {self.path!r}; give a file, a folder or a hub dataset.")
        if self.weight is not None and not (isinstance(self.weight, int | float) and self.weight > 0):
            raise InputError(f"data gives '{self.path}' the weight {self.weight!r}; give a number above 0.")
        object.__setattr__(self, "path", expand_path(self.path))

    @property
    def is_tinytown(self) -> bool:
        return self.path.partition(":")[0] == "tinytown"

    @property
    def is_local(self) -> bool:
        """Whether it is a file or folder, there or not."""
        return Path(self.path).exists() or suffix_of(self.path) in READERS


def parse_sources(data: str | list) -> list[Source]:
    """Returns the sets that a recipe's field `data` names.

    Args:
        data: A path or name, or a list of them and of mappings with `path`, `weight`, `split` and `column`.
    """
    entries = data if isinstance(data, list) else [data]
    if not entries:
        raise InputError("data is an empty list; name at least one file, folder or hub dataset.")
    sources = []
    for entry in entries:
        fields = entry if isinstance(entry, dict) else {"path": entry}
        unknown = set(fields) - set(Source.__dataclass_fields__)
        if unknown or "path" not in fields:
            raise InputError(f"data has the entry {entry!r}; give a path, or path, weight, split and column.")
        sources.append(Source(**fields))
    if len({source.weight is None for source in sources}) > 1:
        raise InputError("data gives a weight to some of its sets only; give one to each, or to none.")
    return sources


def suffix_of(path: str | Path) -> str:
    """The last suffix in lower case, without a final `.gz`."""
    name = Path(path).name.lower()
    return Path(name.removesuffix(".gz")).suffix


def read_text(path: str | Path) -> str:
    """Returns the text of a UTF-8 file, without its byte-order mark, each line ended by one newline character."""
    path = Path(expand_path(str(path)))
    with _opened(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is not UTF-8 text; convert it to UTF-8.") from None
    if "\x00" in text or not text.strip():
        problem = "binary data" if text.strip() else "no text"
        raise InputError(f"'{path}' holds {problem}; give a text file.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """A file's bytes: decompressed where they are gzip, whatever the name says, and as UTF-8 where a mark says UTF-16.

    Raises:
        InputError: The file is not there, or a part of it cannot be read.
    """
    if not path.is_file():
        raise InputError(f"There is no text file '{path}'; give the path of an existing one.")
    try:
        with path.open("rb") as raw:
            is_compressed = raw.peek(2).startswith(GZIP)
            with gzip.open(raw) if is_compressed else raw as file:
                start = file.peek(4)[:4]
                encoding = next((name for mark, name in MARKS if start.startswith(mark)), None)
                yield io.BytesIO(file.read().decode(encoding).encode()) if encoding else cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error, UnicodeError) as problem:
        raise InputError(f"'{path}' cannot be read to its end: {first_line(problem)}") from problem


def json_lines(path: str | Path) -> Iterator[tuple[int, Record]]:
    """Yields (line number, record) of a JSON-lines file, and raises at the first line that is not a record."""
    path = Path(expand_path(str(path)))
    for number, record in _jsonl_records(path):
        if isinstance(record, ValueError):
            raise InputError(f"Line {number} of '{path}' {record}; mend or remove it.")
        yield number, record


def _jsonl_records(path: Path) -> Iterator[Numbered]:
    """One line at a time: a line that cannot be decoded does not spoil the others."""
    empty = True
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            content = line.removeprefix(b"\xef\xbb\xbf").strip()
            if not content:
                continue
            if empty and (content.startswith(b"[") or content == b"{") and _is_one_value(path):
                yield from _json_document(path)
                return
            empty = False
            yield number, _json_record(content.removesuffix(b","))
    if empty:
        raise InputError(f"'{path}' holds no text; give a file with a record in each line.")


def _json_record(content: bytes) -> Record | ValueError:
    try:
        return _checked_record(_parse_json(content.decode("utf-8")))
    except UnicodeDecodeError:
        return InputError("is not UTF-8 text")
    except InputError as problem:
        return problem


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text, strict=False)  # raw tabs inside strings are common
    except json.JSONDecodeError as problem:
        raise InputError(f"is not JSON ({problem.msg})") from None
    except RecursionError:
        raise InputError("is nested too deeply") from None
    except ValueError as problem:  # Python's limit on digits
        raise InputError(f"is not readable JSON ({problem})") from None


def _checked_record(record: Any) -> Record | ValueError:
    if isinstance(record, dict):
        return record
    if isinstance(record, list) and record and all(isinstance(message, dict) for message in record):
        return {"messages": record}
    return InputError(f"is of type {type(record).__name__}, not a record")


def _json_file_records(path: Path) -> Iterator[Numbered]:
    """A list of records, a mapping that holds one, or JSON lines under another name."""
    yield from _json_document(path) if _is_one_value(path) else _jsonl_records(path)


def _is_one_value(path: Path) -> bool:
    """Whether a file is one JSON value, whatever its name."""
    try:
        _parse_json(read_text(path))
    except InputError:
        return False
    return True


def _json_document(path: Path) -> Iterator[Numbered]:
    content = _parse_json(read_text(path))
    if isinstance(content, dict):
        lists = [content[key] for key in WRAPPERS if isinstance(content.get(key), list)]
        content = lists[0] if lists else [content]
    if not isinstance(content, list):
        raise InputError(f"'{path}' holds a {type(content).__name__}; give a list of records, or JSON lines.")
    for number, record in enumerate(content, 1):
        yield number, _checked_record(record)


def _text_records(path: Path) -> Iterator[Numbered]:
    yield 1, {"text": read_text(path)}


def _csv_records(path: Path) -> Iterator[Numbered]:
    """Every cell is text, also "NA" and "42"; a row with too few or too many cells is odd."""
    lines = read_text(path).splitlines(keepends=True)
    delimiter = next((mark for mark in ("\t", ",", ";") if mark in lines[0]), ",")
    reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
    for number in itertools.count(1):
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as problem:  # a quote that is never closed takes all lines after it
            yield number, InputError(f"is not CSV ({problem}); close and double the quotes in it")
            continue
        if None in row or None in row.values():
            yield number, InputError("has another number of cells than the header")
        else:
            yield number, row


def _parquet_records(path: Path) -> Iterator[Numbered]:
    from datasets import load_dataset

    try:
        rows = load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        yield from enumerate(rows, 1)
    except InputError:
        raise
    except Exception as problem:  # pyarrow's many words for a broken file
        raise InputError(f"'{path}' cannot be read as parquet: {first_line(problem)}") from problem


READERS: dict[str, Callable[[Path], Iterator[Numbered]]] = {
    ".txt": _text_records,
    ".jsonl": _jsonl_records,
    ".ndjson": _jsonl_records,
    ".json": _json_file_records,
    ".csv": _csv_records,
    ".tsv": _csv_records,
    ".parquet": _parquet_records,
}


def first_line(problem: Exception) -> str:
    """Returns what an exception says, in one line."""
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def local_files(source: Source) -> list[Path]:
    """The files of a local source: itself, or those of a folder that belong to its split."""
    path = Path(source.path)
    if not path.is_dir():
        if glob.has_magic(source.path) and (matching := sorted(glob.glob(source.path, recursive=True))):
            return [file for name in matching for file in local_files(replace(source, path=name))]
        if not path.exists():
            raise InputError(f"There is no file '{path}'; give the path of an existing one.")
        if suffix_of(path) not in READERS:
            raise InputError(f"'{path}' is none of {', '.join(READERS)}; rename or convert it.")
        return [path]
    files = [file for file in sorted(path.rglob("*")) if _is_data(file.relative_to(path))]
    words = {file: SPLIT_WORD.findall(str(file.relative_to(path)).lower()) for file in files}
    if any(words.values()):  # a folder with splits: a file of another split is not trained on
        files = [file for file in files if source.split in words[file] or not words[file]]
    if not files:
        raise InputError(
            f"The folder '{path}' has no {source.split} file of the kinds {', '.join(READERS)}; "
            "give a folder with data, or name its split."
        )
    return files


def _is_data(path: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and path.name not in METADATA and suffix_of(path) in READERS


def _saved_dataset(source: Source) -> Iterator[Numbered] | None:
    """Records of a folder that `save_to_disk` of datasets made; None where it did not."""
    folder = Path(source.path)
    if not folder.is_dir() or not any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
        return None
    from datasets import DatasetDict, load_from_disk

    saved = load_from_disk(str(folder))
    if isinstance(saved, DatasetDict):
        if source.split not in saved:
            raise InputError(f"'{folder}' has no split '{source.split}'; it has {', '.join(saved)}.")
        saved = saved[source.split]
    return enumerate(saved, 1)


def records(source: Source, streaming: bool = False) -> Iterator[Numbered]:
    """Yields the numbered records of a source.

    Args:
        source: What to read.
        streaming: Read a hub dataset without downloading it whole.

    Raises:
        InputError: Where there is nothing to read.
    """
    if not source.is_local:
        return enumerate(_hub_rows(source, streaming), 1)
    saved = _saved_dataset(source)
    return _local_records(source) if saved is None else saved


def _local_records(source: Source) -> Iterator[Numbered]:
    """Numbered through all files; of several files one that cannot be read counts as one odd record."""
    files = local_files(source)
    before = last = 0
    for file in files:
        try:
            for number, record in READERS[suffix_of(file)](file):
                last = before + number
                yield last, record
        except InputError as problem:
            if len(files) == 1:
                raise
            last += 1
            yield last, problem
        before = last


def _hub_rows(source: Source, streaming: bool) -> Iterable[Record]:
    from datasets import load_dataset

    name, _, configuration = source.path.partition(":")
    try:
        return load_dataset(name, configuration or None, split=source.split, streaming=streaming)
    except Exception as problem:  # many libraries' words for: not there, no network, not a dataset
        raise InputError(f"There is no file and no reachable hub dataset '{name}': {first_line(problem)}") from problem


class Reader:
    """Reads a source again and again, and says once what it skips.

    Args:
        source: What to read.
        parse: Makes a value of a record; raises ValueError where it cannot.
        streaming: As in `records`.
    """

    def __init__(self, source: Source, parse: Callable[[Record], Any], streaming: bool = False):
        self.source = source
        self.parse = parse
        self.streaming = streaming
        self._has_reported = False

    def __iter__(self) -> Iterator[Any]:
        """Yields the values of all readable records.

        Raises:
            InputError: When more records are unreadable than readable; it names the first of them.
        """
        good = odd = 0
        named: list[str] = []
        reported = NAMED if self._has_reported else 0
        for number, record in records(self.source, self.streaming):
            try:
                if isinstance(record, ValueError):
                    raise record
                value = self.parse(record)
            except ValueError as problem:
                odd += 1
                sentence = f"Record {number} of '{self.source.path}' {_as_predicate(problem)}"
                if odd <= NAMED:
                    named.append(sentence)
                if odd >= PATIENCE and odd > good:
                    break
            else:
                good += 1
                yield value
            if odd <= good:  # a stream may never end
                for sentence in named[reported:]:
                    print(f"{sentence} It is skipped.")
                reported = max(reported, len(named))
        if not odd and not good:
            raise InputError(f"'{self.source.path}' has no records; give a set with at least one.")
        if odd > good:
            raise InputError(f"{sentence_count(odd, good)} unreadable. {named[0]}")
        if odd and not self._has_reported:
            print(f"{sentence_count(odd, good)} skipped.")
        self._has_reported = True


def sentence_count(odd: int, good: int) -> str:
    """ "3 of 4 records are", for an error message."""
    return f"{odd} of {odd + good} records {'is' if odd == 1 else 'are'}"


def _as_predicate(problem: ValueError) -> str:
    """ "is not JSON" as it is, "The roles come as …" after a colon; both ended by one full stop."""
    text = str(problem).rstrip(".")
    return f"{text}." if text.startswith(("is ", "has ")) else f"cannot be read: {text}."
