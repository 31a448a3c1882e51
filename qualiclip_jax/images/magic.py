"""Which format a file is, by its first bytes."""

from qualiclip_jax.images.error import Refused, not_supported

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
HEAD = 64  # bytes of a file that `identify` needs
_NOT_AN_IMAGE = "not an image in a format read here (JPEG, PNG, WebP, BMP, TIFF, GIF, AVIF, HEIC)"
_READ = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",  # BigTIFF
    b"MM\0+": "TIFF",
    b"II\0*": "TIFF",  # wrong, but read everywhere
    b"MM*\0": "TIFF",
}
_RAW = {
    b"II*\0\x10\0\0\0CR": "CR2",
    b"II\x1a\0\0\0HEAPCCDR": "CRW",
    b"FUJIFILMCCD-RAW": "RAF",
    b"IIRO": "ORF",
    b"IIRS": "ORF",
    b"MMOR": "ORF",
    b"IIU\0": "RW2",
    b"\0MRM": "MRW",
    b"FOVb": "X3F",
    b"ARRI": "ARI",
    b"II*\0\x08\0\0\0IIII": "IIQ",
}
_OTHERS = {
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"II\xbc": "JPEG XR",
    b"8BPS": "Photoshop (PSD)",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance HDR",
    b"%PDF": "PDF",
    b"qoif": "QOI",
    b"DDS ": "DDS",
    b"\0\0\1\0": "icon (ICO)",
}
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")


def identify(head: bytes) -> str:
    """The format of a file, one of `FORMATS`, from its first `HEAD` bytes.

    Raises:
      Refused: the format is none of them; it is named where it is known.
    """
    for table in (_RAW, _OTHERS):
        for magic, name in table.items():
            if head.startswith(magic):
                raise camera_raw(name) if table is _RAW else not_supported(name)
    for magic, name in _READ.items():
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _identify_boxes(head)
    raise Refused(_NOT_AN_IMAGE)


def camera_raw(name: str = "") -> Refused:
    """The error for a raw file of a camera."""
    return not_supported(f"camera raw{name and f' ({name})'}", "develop it first")


def _identify_boxes(head: bytes) -> str:
    """Files of the ISO base media family, by their brands: the major one, then the compatible ones."""
    brands = [head[8:12], *(head[k : k + 4] for k in range(16, len(head), 4))]
    if brands[0] == b"crx ":
        raise camera_raw("CR3")
    if any(brand in _AVIF_BRANDS for brand in brands):
        return "AVIF"
    if brands[0] in _HEIF_BRANDS:
        return "HEIF"
    raise not_supported("video, or another file of the MP4 family,")
