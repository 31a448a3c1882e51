"""TIFF files of every depth, colour and layout.

Pillow decompresses. What the samples mean is decided here, because Pillow ignores some of the tags that say it.
"""

import math
from typing import BinaryIO

import numpy as np

from qualiclip_jax.images.error import Refused, not_supported
from qualiclip_jax.images.rgb import Opened, by_strips, over_white, to_rgb, upright, upright_size
from qualiclip_jax.images.tiff_tags import Directory, Tag, TiffFile

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6  # photometric interpretations
_COLORANTS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4}
_NAMES = {0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab", 10: "Lab"}
_NONE, _PACK_BITS = 1, 32773  # compressions
_LOSSLESS = (_NONE, 5, 8, _PACK_BITS, 32946, 34925, 50000)  # LZW, deflate twice, LZMA, Zstandard
_BILEVEL = (2, 3, 4)  # CCITT fax
_LOSSY = _OLD_JPEG, _JPEG = 6, 7
_JPEG_END = b"\xff\xd9"
_UNSIGNED, _FLOAT = 1, 3  # sample formats
_FORMATS = {_UNSIGNED: "", 2: "signed ", _FLOAT: "floating point "}
_INTEGER_BITS, _FLOAT_BITS = (1, 2, 4, 8, 16), (16, 32, 64)
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3  # predictors
_PREMULTIPLIED, _ALPHAS = 1, (1, 2, 999)  # extra samples; 999 is what Corel Draw writes
_MOST_BITS = 256  # of a pixel
_MOST_PADDING = 64 << 20  # bytes by which tiles may exceed the picture


def open_tiff(file: BinaryIO) -> Opened:
    """Finds the photo in a TIFF file and reads what describes it."""
    tiff = TiffFile(file)
    photo = tiff.photo()
    width, height, orientation = photo.get(Tag.WIDTH, 0), photo.get(Tag.HEIGHT, 0), photo.get(Tag.ORIENTATION, 1)
    if not (width and height):
        raise ValueError("no size")
    samples = None if _is_left_to_pillow(photo) else _Samples(photo)

    def decode() -> np.ndarray:
        if samples is None:
            if photo.get(Tag.COMPRESSION, _NONE) == _JPEG:
                _check_jpeg_ends(tiff, photo)
            return to_rgb(tiff.open(photo))  # Pillow turns it upright
        return upright(samples.decode(tiff), orientation)

    return Opened(upright_size(height, width, orientation), decode)


def _is_left_to_pillow(photo: Directory) -> bool:
    """Whether Pillow decodes the colours, too, as it does right: of JPEG, CCITT fax and YCbCr.

    Raises:
      Refused: the picture is of this kind, but Pillow does not decode it right.
    """
    compression, photometric = photo.get(Tag.COMPRESSION, _NONE), photo.get(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
    if compression in _LOSSLESS and photometric != _YCBCR:
        return False
    colors: tuple[int, ...]
    if compression in _BILEVEL:
        bits, colors = 1, (_WHITE_IS_ZERO, _BLACK_IS_ZERO)
    elif compression in _LOSSY:
        bits, colors = 8, (_BLACK_IS_ZERO, _RGB, _CMYK, _YCBCR)
    else:  # of uncompressed YCbCr, Pillow takes all samples of all pixels to be there
        bits, colors = 8, (_YCBCR,) if compression != _NONE or photo.tags.get(Tag.SUBSAMPLING) == (1, 1) else ()
    plain = photo.get(Tag.PLANAR, 1) == 1 and Tag.EXTRA_SAMPLES not in photo.tags
    if not (plain and photometric in colors and {*photo.tags.get(Tag.BITS, (1,))} == {bits}):
        raise _refused(photo)
    return True


def _check_jpeg_ends(tiff: TiffFile, photo: Directory) -> None:
    """Raises EOFError if the JPEG data of a strip or tile stop early: libtiff would fill the rest with grey."""
    tiled = Tag.TILE_WIDTH in photo.tags
    places = (Tag.TILE_OFFSETS, Tag.TILE_BYTES) if tiled else (Tag.STRIP_OFFSETS, Tag.STRIP_BYTES)
    for start, size in zip(*(photo.tags.get(tag, ()) for tag in places)):
        if _JPEG_END not in tiff.read(start, size):
            raise EOFError("its JPEG data end early")


def _refused(photo: Directory) -> Refused:
    bits, photometric = photo.tags.get(Tag.BITS, (1,)), photo.get(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
    color = _NAMES.get(photometric, f"photometric interpretation {photometric}")
    kind = _FORMATS.get(photo.get(Tag.SAMPLE_FORMAT, _UNSIGNED), "other ")
    return not_supported(
        f"TIFF of this kind ({photo.get(Tag.SAMPLES, len(bits))} samples of {bits[0]} {kind}bits, {color}, "
        f"compression {photo.get(Tag.COMPRESSION, _NONE)})"
    )


class _Samples:
    """The samples of a picture that is compressed without loss, or not at all.

    A strip or tile is a block here. Planes are pictures of one sample each, one after another.

    Raises:
      Refused: they are of a kind that is not decoded.
      ValueError: the tags contradict each other.
    """

    def __init__(self, photo: Directory):
        self._photo = photo
        self._width, self._height = photo.get(Tag.WIDTH, 0), photo.get(Tag.HEIGHT, 0)
        self._photometric = photo.get(Tag.PHOTOMETRIC, _WHITE_IS_ZERO)
        all_bits, formats = photo.tags.get(Tag.BITS, (1,)), photo.tags.get(Tag.SAMPLE_FORMAT, (_UNSIGNED,))
        self._bits, self._floating = all_bits[0], formats[0] == _FLOAT
        samples = photo.get(Tag.SAMPLES, len(all_bits))
        self._planes = samples if photo.get(Tag.PLANAR, 1) == 2 else 1
        self._samples = samples // self._planes  # of a pixel in one plane
        self._colorants = _COLORANTS.get(self._photometric, 0)
        extras = photo.tags.get(Tag.EXTRA_SAMPLES, (2,) if self._photometric == _RGB and samples == 4 else ())
        alphas = [k for k, extra in enumerate(extras) if extra in _ALPHAS]
        self._alpha = self._colorants + alphas[0] if alphas else None  # which sample it is
        self._premultiplied = bool(alphas) and extras[alphas[0]] == _PREMULTIPLIED
        compression = photo.get(Tag.COMPRESSION, _NONE)
        self._predictor = 1 if compression in (_NONE, _PACK_BITS) else photo.get(Tag.PREDICTOR, 1)
        if not (
            self._colorants > 0
            and samples == self._colorants + len(extras)
            and samples * self._bits <= _MOST_BITS
            and {*all_bits} == {self._bits}
            and {*formats} in ({_UNSIGNED}, {_FLOAT})
            and (self._is_known_float() if self._floating else self._is_known_integer())
            and (not self._premultiplied or self._photometric in (_BLACK_IS_ZERO, _RGB))
            and (self._photometric != _CMYK or photo.get(Tag.INK_SET, 1) == 1)
        ):
            raise _refused(photo)
        self._tiled = Tag.TILE_WIDTH in photo.tags
        rows = (
            photo.get(Tag.TILE_HEIGHT, 0) if self._tiled else min(photo.get(Tag.ROWS_PER_STRIP, 1 << 32), self._height)
        )
        self._block = rows, photo.get(Tag.TILE_WIDTH, self._width)
        if not all(self._block):
            raise ValueError("blocks of no size")
        self._grid = math.ceil(self._height / rows), math.ceil(self._width / self._block[1])
        self._block_bytes = math.ceil(self._block[1] * self._samples * self._bits / 8)  # of one row
        stored = math.prod(self._grid) * rows * self._block_bytes
        if stored > self._height * self._width * self._samples * self._bits / 8 + _MOST_PADDING:
            raise ValueError("tiles that are far larger than the image")

    def _is_known_integer(self) -> bool:
        predicted = self._predictor == 1 or (self._predictor == _DIFFERENCES and self._bits in (8, 16))
        return self._bits in _INTEGER_BITS and predicted

    def _is_known_float(self) -> bool:
        predicted = self._predictor in (1, _DIFFERENCES, _FLOAT_DIFFERENCES)
        return self._bits in _FLOAT_BITS and predicted and self._photometric != _PALETTE

    def decode(self, tiff: TiffFile) -> np.ndarray:
        """The picture, uint8 [H, W, 3]; not turned upright."""
        needed = self._colorants if self._alpha is None else self._alpha + 1
        planes = [self._rows(tiff, plane) for plane in range(min(self._planes, needed))]

        def convert(first: int, last: int) -> np.ndarray:
            samples = [self._unpack(rows[first:last], tiff.order)[:, : self._width] for rows in planes]
            return self._to_rgb(np.concatenate(samples, axis=-1) if len(samples) > 1 else samples[0])

        return by_strips(self._height, self._width, convert)

    def _rows(self, tiff: TiffFile, plane: int) -> np.ndarray:
        """The bytes of a plane: uint8 [H, blocks across, bytes of a row of a block]."""
        (down, across), tall = self._grid, self._block[0]
        height = down * across * tall if self._tiled else self._height  # Pillow gets the tiles one below another
        compression = self._photo.get(Tag.COMPRESSION, _NONE)
        tags: dict[int, tuple[int, ...]] = {
            Tag.WIDTH: (self._block_bytes,), Tag.HEIGHT: (height,), Tag.BITS: (8,), Tag.COMPRESSION: (compression,),
            Tag.PHOTOMETRIC: (_BLACK_IS_ZERO,), Tag.FILL_ORDER: (self._photo.get(Tag.FILL_ORDER, 1),),
            Tag.SAMPLES: (1,), Tag.ROWS_PER_STRIP: (tall,),
        }  # fmt: skip
        mine = slice(plane * down * across, (plane + 1) * down * across)
        for name, tag in ((Tag.STRIP_OFFSETS, Tag.TILE_OFFSETS), (Tag.STRIP_BYTES, Tag.TILE_BYTES)):
            values = self._photo.tags.get(tag if self._tiled else name, ())[mine]
            if len(values) == down * across:
                tags[name] = values
        offsets, sizes = tags.get(Tag.STRIP_OFFSETS, ()), tags.get(Tag.STRIP_BYTES, ())
        if not offsets or (compression != _NONE and not sizes):
            raise ValueError("it does not say where all pixels are")
        needed = tuple(min(tall, height - k * tall) * self._block_bytes for k in range(len(offsets)))
        if any(size < (least if compression == _NONE else 1) for size, least in zip(sizes, needed)):
            raise EOFError("a strip or tile has fewer bytes than its pixels need")
        sizes = needed if compression == _NONE else sizes
        if any(offset + size > tiff.size for offset, size in zip(offsets, sizes)):
            raise EOFError("the file ends before its pixels")
        image = tiff.open_as(tags)
        try:
            image.load()
        except OSError as error:  # it has a number alone: libtiff prints its reason
            raise OSError("its compressed data are broken or end early") from error
        rows = np.asarray(image)
        if self._tiled:
            rows = rows.reshape(down, across, tall, -1).swapaxes(1, 2)
        return rows.reshape(-1, across, self._block_bytes)[: self._height]

    def _unpack(self, rows: np.ndarray, order: str) -> np.ndarray:
        """Numbers from the bytes of some rows: [h, W or more, samples]."""
        height, across, _ = rows.shape
        size, count = self._bits // 8, self._block[1] * self._samples
        if self._bits < 8:
            digits = np.unpackbits(rows, axis=-1)[..., : count * self._bits]
            values = digits.reshape(height, across, count, self._bits) @ (
                1 << np.arange(self._bits, dtype=np.uint16)[::-1]
            )
        elif self._predictor == _FLOAT_DIFFERENCES:  # of the bytes, the highest ones of all samples first
            bytes_ = np.cumsum(rows.reshape(height, across, -1, self._samples), axis=2, dtype=np.uint8)
            values = np.ascontiguousarray(bytes_.reshape(height, across, size, count).swapaxes(2, 3)).view(f">f{size}")
        else:
            values = np.ascontiguousarray(rows).view(f"{order}u{size}")
            if self._predictor == _DIFFERENCES:
                differences = values.reshape(height, across, -1, self._samples)
                values = np.cumsum(differences, axis=2, dtype=f"u{size}")
            if self._floating:
                values = values.view(values.dtype.str.replace("u", "f"))
        return values.reshape(height, -1, self._samples)

    def _to_rgb(self, samples: np.ndarray) -> np.ndarray:
        """Colours over white from samples [h, W, samples of a pixel]: uint8 [h, W, 1 or 3]."""
        color = samples[..., : self._colorants]
        if (
            color.dtype == np.uint8
            and self._alpha is None
            and self._photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB)
        ):
            return 255 - color if self._photometric == _WHITE_IS_ZERO else color
        alpha = None if self._alpha is None else self._unit(samples[..., self._alpha, None])
        if self._photometric == _PALETTE:
            unit = self._palette()[color[..., 0]]
        else:
            unit = self._unit(color)
        if self._photometric == _WHITE_IS_ZERO:
            unit = 1 - unit
        elif self._photometric == _CMYK:
            unit = (1 - unit[..., :3]) * (1 - unit[..., 3:])
        return over_white(unit, alpha, self._premultiplied)

    def _unit(self, samples: np.ndarray) -> np.ndarray:
        """Samples from 0 to 1, float32."""
        if not self._floating:
            return samples.astype(np.float32) / ((1 << self._bits) - 1)
        low, high = float(samples.min()), float(samples.max())
        if not (low >= 0 and high <= 1):
            raise not_supported(f"TIFF with floating point values from {low:.8g} to {high:.8g}", "scale them to 0 to 1")
        return samples.astype(np.float32)

    def _palette(self) -> np.ndarray:
        """Colours from 0 to 1, float32 [2 ** bits, 3]. They are stored as 16 bits, by a few writers as 8."""
        colors = np.array(self._photo.tags.get(Tag.COLOR_MAP, ()), np.int64)
        if len(colors) != 3 << self._bits:
            raise ValueError("a palette of the wrong length")
        return (colors if colors.max() < 256 else colors >> 8).reshape(3, -1).T.astype(np.float32) / 255
