"""The content of a file: unpacked within limits, and its text in whatever encoding it is."""

import gzip
import io
import logging
import zipfile
import zlib
from pathlib import Path

from megedit.errors import MegError

MAX_UNPACKED_BYTES = 4 * 1024**3

logger = logging.getLogger("megedit")

_LIMIT = f"{MAX_UNPACKED_BYTES / 1024**3:.0f} GiB"
_SAMPLE_BYTES = 32_768  # of the lines that are not ASCII, to find the encoding by
_BYTE_ORDER_MARKS = {  # in this order: that of UTF-32 begins as that of UTF-16
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\0\0": "utf-32",
    b"\0\0\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_OTHER_FORMATS = {
    b"\xd0\xcf\x11\xe0": "an old or encrypted Excel file (.xls)",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF file",
    b"{\\rtf": "a rich text file",
    b"SQLite format 3": "a database",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
}


def read_content(path: str | Path) -> bytes:
    """The bytes of a file, those inside it if it is gzipped.

    Raises:
        MegError: the file cannot be read or unpacked, or unpacks to more than `MAX_UNPACKED_BYTES`.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise MegError(f"{path}: this is a directory; name a file inside it")
        data = path.read_bytes()
    except FileNotFoundError:
        raise MegError(f"{path}: there is no such file; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL character
        raise MegError(f"{path}: the file cannot be read ({error}); check its path and permissions") from None
    return _gunzip(path, data) if data.startswith(b"\x1f\x8b") else data


def decode(source: str, data: bytes) -> str:
    """The text in the bytes: UTF-8, UTF-16 or UTF-32, else the encoding that chardet finds, which is logged.

    Raises:
        MegError: the bytes are those of a format that is no text, or of no encoding.
    """
    for start, name in _OTHER_FORMATS.items():
        if data.startswith(start):
            raise MegError(f"{source}: this is {name}; save it as CSV, JSONL or .xlsx, or unpack it")
    for encoding in _unicode_encodings(data):
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            problem = f"byte {error.start + 1} is not {encoding.removesuffix('-sig').upper()}"
    return _decode_by_content(source, data, problem)


def is_workbook(source: str, data: bytes) -> bool:
    """True if the bytes are an Excel workbook (.xlsx); MegError if they are another archive or unpack to too much."""
    if not data.startswith(b"PK\x03\x04"):
        return False
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = archive.infolist()
    except zipfile.BadZipFile as error:
        raise MegError(f"{source}: the archive is damaged ({error}); copy or save it again") from None
    if "xl/workbook.xml" not in (names := [member.filename for member in members]):
        held = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        raise MegError(f"{source}: this is an archive ({held}) and no .xlsx; unpack it and name a file inside it")
    if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
        raise MegError(f"{source}: the workbook unpacks to more than {_LIMIT}; save the facts as CSV or JSONL")
    return True


def _unicode_encodings(data: bytes) -> list[str]:
    """The encodings of Unicode that the bytes may have, the most likely first."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if data.startswith(mark):
            return [encoding]
    zeros = (data[::2].count(0), data[1::2].count(0))
    if not any(zeros):
        return ["utf-8"]
    wide = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"  # of Latin letters, every second byte is zero
    return [wide] if sum(zeros) >= len(data) / 4 else [wide, "utf-8"][:: -1 if _is_utf_8(data) else 1]


def _is_utf_8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _decode_by_content(source: str, data: bytes, problem: str) -> str:
    import chardet  # here, since files in Unicode do without it

    marked = data.startswith(tuple(_BYTE_ORDER_MARKS))  # it says what it is, and is damaged
    lines = [line for line in data.splitlines() if not line.isascii()]
    encoding = None if marked else chardet.detect(b"\n".join(lines)[:_SAMPLE_BYTES])["encoding"]
    try:
        text = data.decode(encoding) if encoding else None
    except (UnicodeDecodeError, LookupError):
        text = None
    if text is None:
        tried = f" and not {encoding}, which it resembles" if encoding else ""
        raise MegError(f"{source}: {problem}{tried}; save the file with UTF-8 encoding")
    example = next((" ".join(line.split())[:60] for line in text.splitlines() if not line.isascii()), "")
    logger.warning(
        "%s: %s, so it was read as %s (%r); if letters are wrong, save the file with UTF-8 encoding",
        source, problem, encoding, example,
    )  # fmt: skip
    return text


def _gunzip(path: Path, data: bytes) -> bytes:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
            unpacked = packed.read(MAX_UNPACKED_BYTES + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise MegError(f"{path}: the gzip data is damaged ({error}); copy or compress it again") from None
    if len(unpacked) > MAX_UNPACKED_BYTES:
        raise MegError(f"{path}: the gzip data unpack to more than {_LIMIT}; split the file")
    return unpacked
