"""Find and read the images that a command line names."""

import glob
import os
import sys
from collections import Counter
from pathlib import Path

from tqdm.auto import tqdm

from modeling_vlkd.image_loading_vlkd import IMAGE_EXTENSIONS

# Photo formats that Pillow reads only with a plugin or in newer versions, or not at all.
UNREADABLE = set(
    ".avif .heic .heif .hif .jxl .3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef "
    ".raf .raw .rw2 .rwl .sr2 .srf .srw .x3f".split()
)


def find_images(name: str, recursive: bool = False) -> tuple[list[Path | str], list[Path]]:
    """The images that a name refers to, sorted, and the other files in its place.

    A file or URL is returned unchanged. In a folder, and among the files that match a pattern, the extension tells
    which files are images. Hidden files are ignored, and so are subfolders unless `recursive`. Captions of the images,
    in metadata.jsonl or photo.txt, are not other files.
    """
    if name.startswith(("http://", "https://")):
        return [name], []
    if os.path.isdir(name):
        candidates = Path(name).rglob("*") if recursive else Path(name).iterdir()
        candidates = (file for file in candidates if not _is_hidden(file.relative_to(name)))
    elif os.path.exists(name) or not glob.has_magic(name):
        return [Path(name)], []  # `load_images` reports a missing file
    else:
        candidates = (file for file in map(Path, glob.glob(name, recursive=True)) if not file.name.startswith("."))
    files = sorted(file for file in candidates if not file.is_dir())
    images = [file for file in files if file.suffix.lower() in IMAGE_EXTENSIONS]
    captions = {file.with_suffix(".txt") for file in images} | {file.with_name("metadata.jsonl") for file in images}
    return images, sorted({*files} - {*images} - captions)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def names_image(text: str) -> bool:
    """Whether a text is a URL, or one word that ends as the name of an image does."""
    is_file_name = " " not in text and Path(text).suffix.lower() in {*IMAGE_EXTENSIONS, *UNREADABLE}
    return is_file_name or text.startswith(("http://", "https://"))


def report_skipped(found: dict[str, tuple[list, list[Path]]]) -> bool:
    """Report names without images, and the number of other files by extension.

    Returns:
        Whether a name has no image, or a photo in a format that Pillow cannot read.
    """
    failed = False
    for name, (images, others) in found.items():
        extensions = Counter(file.suffix.lower() for file in others)
        photos = {extension: extensions.pop(extension) for extension in UNREADABLE & extensions.keys()}
        if photos:
            plugin = "install pillow-heif to read HEIC, or " if photos.keys() & {".heic", ".heif", ".hif"} else ""
            warn(name, f"skipped {_counted(photos)}: Pillow cannot read them; {plugin}convert them to JPEG or PNG")
        if extensions:
            warn(name, f"skipped {_counted(extensions)}: not images")
        if not others and not images:
            warn(name, "no images found")
        failed |= bool(photos or not images)
    return failed


def _counted(extensions: dict[str, int]) -> str:
    """Such as "1 .cr2, 2 .heic"."""
    return ", ".join(f"{count} {extension or 'without extension'}" for extension, count in sorted(extensions.items()))


def warn(name: Path | str, reason: object) -> None:
    tqdm.write(f"vlkd: {name}: {reason}", file=sys.stderr)
