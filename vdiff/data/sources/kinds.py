"""What a file is: by its suffix if that is well known, else by its first bytes."""

import re

from vdiff.data.sources.left_out import ARCHIVE, FORMAT, TEXT, UNFINISHED, UNKNOWN, VIDEO, Reason
from vdiff.data.sources.names import suffix_of

BEGINNING = 256
"""How many of its first bytes tell what a file is."""


def _set(text: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in text.split())


SUFFIXES = _set("png jpg jpeg jpe jfif webp bmp gif tif tiff ppm pgm pbm pnm jp2 j2k avif")
"""Files with these suffixes are taken for pictures without a look at their content."""

# A camera's own format looks like TIFF, and Pillow would take the thumbnail in it for the picture.
_CAMERAS = _set(
    "dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef raw rwl 3fr iiq x3f erf kdc dcr mrw mos"
)
_VIDEOS = _set("mp4 mov avi mkv webm m4v mpg mpeg wmv flv 3gp mts m2ts ogv")
_ARCHIVES = _set("zip tar tgz tbz tbz2 txz tzst gz bz2 xz zst lz4 7z rar z")
_UNFINISHED = _set("part partial crdownload download tmp aria2 incomplete")
_DATA = _set(
    "txt json jsonl ndjson csv tsv xml yaml yml toml ini cfg conf md rst html htm css js log lst "
    "list url lnk torrent py ipynb c h cpp java m r sh bat md5 sha1 sha256 sha512 sfv cls caption "
    "npy npz pkl pickle pt pth ckpt onnx safetensors parquet arrow feather h5 hdf5 mat tfrecord "
    "tfrecords db sqlite mdb lmdb doc docx xls xlsx ppt pptx odt pdf ps tex wav mp3 flac ogg m4a "
    "exe dll so asc sig sql srt vtt obj ply stl"
)
# A look at the first bytes of a million files on a network disk takes minutes; these need none.
_WITHOUT_A_LOOK = (
    dict.fromkeys(_CAMERAS, FORMAT)
    | dict.fromkeys(_VIDEOS, VIDEO)
    | dict.fromkeys(_ARCHIVES, ARCHIVE)
    | dict.fromkeys(_UNFINISHED, UNFINISHED)
    | dict.fromkeys(_DATA, TEXT)
)
# Formats that have no first bytes of their own.
_FORMATS = _set(
    "heic heif hif jxl psd psb xcf svg svgz eps ai ico icns cur tga pcx dds exr hdr "
    "dcm jxr wdp qoi fits"
)
_SYSTEM = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "picasa.ini", "icon\r"})

_PICTURES = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|"
    rb"BM.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|II\*\0|MM\0\*|II\x2b\0|MM\0\x2b|P[1-6][ \t\r\n"
    rb"]\s*(#|\d)|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
_OTHERS: list[tuple[re.Pattern[bytes], Reason]] = [
    (re.compile(pattern, re.DOTALL), reason)
    for pattern, reason in (
        (
            (
                rb"\xff\x0a|\0\0\0\x0cJXL |8BPS|gimp xcf|v/1\x01|DDS "
                rb"|qoif|#\?R|%!PS|II\xbc|SIMPLE  =|.{128}DICM"
            ),
            FORMAT,
        ),
        (
            rb"\0\0[\x01\x02]\0[\x01-\x40]\0|\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg",
            FORMAT,
        ),
        (
            (
                rb"PK\x03\x04|PK\x05\x06|\x1f\x8b|BZh[1-9]|7z\xbc\xaf|Rar!|\xfd7zXZ|"
                rb"\x28\xb5\x2f\xfd|.{257}ustar"
            ),
            ARCHIVE,
        ),
        (rb"RIFF....AVI |\x1a\x45\xdf\xa3|\0\0\x01[\xb3\xba]|FLV\x01|.{4}(moov|mdat|wide)", VIDEO),
    )
]
# The container of HEIF, AVIF and of videos: a size, `ftyp`, then the brands.
_BRANDS = re.compile(rb"....ftyp", re.DOTALL)
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1", b"crx ", b"heif")


def is_known_picture(name: str) -> bool:
    """Whether the suffix alone says that it is one."""
    return suffix_of(name) in SUFFIXES


def without_a_look(name: str) -> Reason | None:
    """Why a file is no picture, if its suffix alone says so; else None."""
    return _WITHOUT_A_LOOK.get(suffix_of(name))


def is_of_the_system(base: str) -> bool:
    """Whether this is a file that Windows, macOS or Picasa put into folders of pictures."""
    return base.lower() in _SYSTEM


def no_picture(name: str, beginning: bytes) -> Reason | None:
    """Why a file that begins so, in up to BEGINNING bytes, is no picture that vdiff reads;
    None if it is one.
    """
    if _BRANDS.match(beginning):
        box = beginning[: max(16, int.from_bytes(beginning[:4]))]
        # AVIF may be the second brand, after a general one of HEIF.
        if b"avif" in box[8:] or b"avis" in box[8:]:
            return None
        if box[8:12] in _HEIF:
            return FORMAT
        return VIDEO
    if _PICTURES.match(beginning):
        return None
    for pattern, reason in _OTHERS:
        if pattern.match(beginning):
            return reason
    if suffix_of(name) in _FORMATS:
        return FORMAT
    return UNKNOWN
