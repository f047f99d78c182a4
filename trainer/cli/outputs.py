"""Where `vlkd caption` and `vlkd ask` write their texts: to stdout, to one file, or beside the images."""

import argparse
import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, Protocol

from tqdm.auto import tqdm

METADATA = "metadata.jsonl"  # what `datasets` reads in a folder of images
FORMATS = (".jsonl", ".csv")
SPLITS = set("train training validation valid val dev test testing eval evaluation".split())  # folders, to `datasets`

Image = Path | str  # a file or a URL
Existing = Literal["refuse", "keep", "replace"]  # what happens to a file that exists


class Output(Protocol):
    def has(self, image: Image) -> bool:
        """Whether there is nothing left to write for this image."""

    def write(self, texts: list[tuple[Image, str]]) -> None:
        """Write the texts of some images. They are kept if the command is interrupted later."""


class Stdout:
    """One line per image: its name and text, or a JSON object."""

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def has(self, image: Image) -> bool:
        return False

    def write(self, texts: list[tuple[Image, str]]) -> None:
        for image, text in texts:
            if self.args.json:
                line = as_json({**identify(image, self.args), text_column(self.args): text}, sys.stdout.encoding)
            else:
                name = str(image).replace("\n", "\\n")
                line = f"{name}\t{as_one_line(text)}"
            tqdm.write(line)
        sys.stdout.flush()


class RecordFile:
    """A .jsonl or .csv file with one record per image. A batch of records is one write at the end of the file.

    Args:
        file: the file.
        images: the images that it is for.
        identify: returns the columns of an image that come before its text. They tell the records apart.
        column: the column of the text.
        existing: "keep" appends to an existing file, after cutting off an incomplete last record.

    Raises:
        ValueError: the file exists and must not be changed, its folder does not exist, or its records are of another
            kind.
    """

    def __init__(
        self,
        file: Path,
        images: Iterable[Image],
        identify: Callable[[Image], dict[str, str]],
        column: str,
        existing: Existing,
    ):
        if not file.parent.is_dir():
            raise ValueError(f"{file} cannot be written: the folder {file.parent} does not exist. Create it.")
        check_new(file, existing)
        self.file, self.images, self.identify, self.column = file, set(images), identify, column
        self.columns = [*identify(next(iter(self.images), "")), column]
        self.is_csv = file.suffix == ".csv"
        self.done: set[tuple[str, ...]] = set()
        self.end = 0  # of the whole records, in bytes
        self.separator = b""  # before the next record
        self.size = file.stat().st_size if file.exists() else None
        if existing == "keep" and self.size:
            self._read(file.read_bytes())

    def has(self, image: Image) -> bool:
        return image not in self.images or tuple(self.identify(image).values()) in self.done

    def write(self, texts: list[tuple[Image, str]]) -> None:
        records = []
        for image, text in texts:
            if not self.has(image):
                columns = self.identify(image)
                records.append({**columns, self.column: text})
                self.done.add(tuple(columns.values()))
        if not records:
            return
        if self.size != (self.file.stat().st_size if self.file.exists() else None):
            raise ValueError(
                f"{self.file} was changed by another program. Run the command again with --skip_existing."
            )
        with open(self.file, "r+b" if self.end else "wb", buffering=0) as file:
            file.truncate(self.end)
            file.seek(self.end)
            data = self.separator + self._encode(records)
            if file.write(data) < len(data):
                file.truncate(self.end)
                raise OSError(f"{self.file} cannot be written: the disk is full.")
            self.end = self.size = file.tell()
            self.separator = b""

    def _encode(self, records: list[dict[str, str]]) -> bytes:
        if not self.is_csv:
            return "".join(as_json(record, "utf-8") + "\n" for record in records).encode()
        rows = io.StringIO()
        writer = csv.DictWriter(rows, fieldnames=self.columns)
        if not self.end:
            writer.writeheader()
        writer.writerows({**record, self.column: as_one_line(record[self.column])} for record in records)
        return rows.getvalue().encode("utf-8", "surrogateescape")

    def _read(self, data: bytes) -> None:
        """Find the images that have their text, and the end of the last complete record."""
        try:
            records = self._read_csv(data) if self.is_csv else self._read_json_lines(data)
            self.done = {tuple(record[column] for column in self.columns[:-1]) for record in records}
            if any(self.column not in record for record in records):
                raise KeyError(self.column)
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise ValueError(
                f"{self.file} cannot be continued: this command did not write it ({type(error).__name__}: {error}). "
                "Give another file, or replace it with --overwrite."
            ) from error

    def _read_json_lines(self, data: bytes) -> list[dict[str, str]]:
        *lines, last = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
        records = [json.loads(line) for line in lines if line.strip()]
        self.end = len(data) - len(last)
        start = json.dumps(self.columns[0])
        if last.startswith(b"{") and not _is_json(last) and start.startswith(last[1 : len(start) + 1].decode()):
            return records  # the run was stopped while it wrote this one
        if last.strip():  # an editor may write no last line break
            records.append(json.loads(last))
            self.end, self.separator = len(data), b"\n"
        return records

    def _read_csv(self, data: bytes) -> list[dict[str, str]]:
        end = len(data)
        while end and (data[:end].count(b'"') % 2 or not data[:end].endswith(b"\n")):
            end = data.rfind(b"\n", 0, end - 1) + 1
        last = next(csv.reader(io.StringIO(data[end:].decode("utf-8", "surrogateescape"), newline="")), [])
        if len(last) == len(self.columns) or (last and not end):  # an editor may write no last line break
            end, self.separator = len(data), b"\r\n"
        text = data[:end].decode("utf-8", "surrogateescape").removeprefix("\ufeff")
        header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
        if header != self.columns:
            raise ValueError(f"its columns are {', '.join(header)}, not {', '.join(self.columns)}")
        self.end = end
        return [dict(zip(header, row, strict=True)) for row in rows if row]


class Sidecars:
    """A text file beside each image: photo.txt beside photo.jpg.

    Raises:
        ValueError: a text file exists and must not be changed, is an image, or would belong to two images or a URL.
    """

    def __init__(self, images: Iterable[Image], existing: Existing):
        self.existing = existing
        owners: dict[Path, Image] = {}
        for image in images:
            if not isinstance(image, Path):
                raise ValueError(f"--sidecar writes beside images, but {image} is a URL. Use --output.")
            file = image.with_suffix(".txt")
            if file == image:
                raise ValueError(f"the text of {image} would replace the image. Rename it, or use --output.")
            if owners.get(file, image) != image:
                raise ValueError(f"{owners[file]} and {image} would share {file}. Rename one, or use --output.")
            owners[file] = image
            check_new(file, existing)

    def has(self, image: Path) -> bool:
        return self.existing == "keep" and image.with_suffix(".txt").exists()

    def write(self, texts: list[tuple[Path, str]]) -> None:
        for image, text in texts:
            if not self.has(image):
                file = image.with_suffix(".txt")
                part = file.with_name(f".{os.getpid()}.part")  # no longer than a file name may be
                part.write_text(as_one_line(text) + "\n", encoding="utf-8")
                os.replace(part, file)


def open_outputs(args: argparse.Namespace, found: dict[str, list[Image]]) -> list[Output]:
    """The outputs that the options name; stdout if there is none.

    Args:
        args: the parsed options of `vlkd caption` or `vlkd ask`.
        found: the images of each name on the command line.

    Raises:
        ValueError: the options contradict each other, or an output cannot be written.
    """
    if args.skip_existing and args.overwrite:
        raise ValueError("--skip_existing and --overwrite exclude each other.")
    existing: Existing = "keep" if args.skip_existing else "replace" if args.overwrite else "refuse"
    images = [image for names in found.values() for image in names]
    column, outputs = text_column(args), []
    if args.output:
        file = Path(args.output)
        if file.suffix not in FORMATS:
            raise ValueError(f"--output {file} must end in {' or '.join(FORMATS)}.")
        outputs.append(RecordFile(file, images, lambda image: identify(image, args), column, existing))
    if args.sidecar:
        outputs.append(Sidecars(images, existing))
    for name in found if args.metadata else ():
        if not os.path.isdir(name):
            raise ValueError(f"--metadata writes {METADATA} into a folder of images, but {name} is not a folder.")
        check_dataset_folder(Path(name), found[name])
        outputs.append(RecordFile(Path(name, METADATA), found[name], _relative_to(name), column, existing))
    files = [output.file.resolve() for output in outputs if isinstance(output, RecordFile)]
    if len(set(files)) < len(files):
        raise ValueError(f"{min(files)} would be written twice. Name another --output, or each folder once.")
    if not outputs and existing != "refuse":
        option = "--skip_existing" if args.skip_existing else "--overwrite"
        raise ValueError(f"{option} needs a file to write: --output, --sidecar or --metadata.")
    return outputs or [Stdout(args)]


def check_dataset_folder(folder: Path, images: list[Image]) -> None:
    """Raise a ValueError if `datasets` would not find the captions of a folder in its metadata.jsonl."""
    if splits := {Path(image).relative_to(folder).parts[0] for image in images} & SPLITS:
        split = Path(folder, min(splits))
        raise ValueError(
            f"--metadata: {split} is a split of a dataset. Caption it by its name: vlkd caption {split} ..."
        )
    if (other := folder / "metadata.csv").exists():
        raise ValueError(f"--metadata: {other} exists, and a dataset has one file of metadata. Rename it.")


def identify(image: Image, args: argparse.Namespace) -> dict[str, str]:
    """The columns before the text: the image and, for `vlkd ask`, the question."""
    return {"image": str(image)} | ({} if args.question is None else {"question": args.question})


def text_column(args: argparse.Namespace) -> str:
    return "caption" if args.question is None else "answer"


def _relative_to(folder: str) -> Callable[[Path], dict[str, str]]:
    return lambda image: {"file_name": Path(image).relative_to(folder).as_posix()}


def check_new(file: Path, existing: Existing) -> None:
    """Raise a ValueError if the file exists and must not be changed."""
    if existing == "refuse" and file.exists():
        raise ValueError(
            f"{file} exists. Continue it with --skip_existing, or replace the earlier texts with --overwrite."
        )


def _is_json(data: bytes) -> bool:
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def as_one_line(text: str) -> str:
    return " ".join(text.split())


def as_json(record: dict[str, str], encoding: str | None) -> str:
    """A JSON object; characters that the encoding does not have are escaped."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode(encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(record)
    return line
