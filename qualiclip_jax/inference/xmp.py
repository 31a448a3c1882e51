"""XMP sidecars: ratings of 1 to 5 stars beside the photos, as Lightroom, digiKam and darktable read them.

Of a sidecar that is there, the rating is changed and every other byte stays. Source: the XMP specification, part 1
(ISO 16684-1): `xmp:Rating` is an attribute of an `rdf:Description`, or an element in one.
"""

import re
import xml.parsers.expat
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

import numpy as np

from qualiclip_jax import storage
from qualiclip_jax.errors import UserError
from qualiclip_jax.inference.output import refuse_to_replace
from qualiclip_jax.version import __version__

STARS = 5
_RDF, _XMP = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://ns.adobe.com/xap/1.0/"
_MOST = 16 << 20  # bytes of a sidecar
_NEW = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk={tool}>
 <rdf:RDF xmlns:rdf="{rdf}">
  <rdf:Description rdf:about="" xmlns:xmp="{xmp}" xmp:Rating="{stars}"/>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


def stars(scores: Sequence[float]) -> list[int]:
    """1 to 5 stars by percentile: the lowest fifth of the scores gets 1, the highest 5; equal scores get the same."""
    values = np.sort(np.asarray(scores, np.float64))
    middle = (np.searchsorted(values, scores, "left") + np.searchsorted(values, scores, "right")) / 2
    return [1 + min(STARS - 1, int(STARS * rank / len(values))) for rank in middle]


def sidecar(photo: str) -> Path:
    """The sidecar of a photo: `photo.jpg.xmp`, or `photo.xmp` if only that is there."""
    long, short = Path(f"{photo}.xmp"), Path(photo).with_suffix(".xmp")
    return short if short.exists() and not long.exists() else long


def rate(path: Path, rating: int, keep: bool = False) -> bool:
    """Writes a rating into a sidecar, which is made if it is not there.

    Args:
      path: the sidecar.
      rating: 1 to 5.
      keep: whether a rating that is there stays, unless it is 0 (none).

    Returns:
      Whether it was written.

    Raises:
      UserError: the file is no sidecar in UTF-8, or cannot be read.
    """
    refuse_to_replace(path, str(path))
    try:
        if not path.exists():
            tool = quoteattr(f"qualiclip_jax {__version__}")
            data = _NEW.format(tool=tool, rdf=_RDF, xmp=_XMP, stars=rating).encode()
        elif path.stat().st_size > _MOST:
            raise UserError(f"{path}: too large for a sidecar")
        else:
            there = path.read_bytes()
            if keep and _Places(there).rating not in ("", "0"):
                return False
            data = rated(there, rating)
    except ValueError as error:
        raise UserError(f"{path}: {error}; it was left as it is") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    storage.write_bytes(path, data)
    return True


def rated(data: bytes, rating: int) -> bytes:
    """A sidecar with another rating, all its other bytes as they are.

    Raises:
      ValueError: why this is no sidecar that can be changed.
    """
    found = _Places(data)
    digits = str(rating).encode()
    if found.element is not None:
        first, last, closing = found.element
        return data[:first] + (b">" if closing else b"") + digits + closing + data[last:]
    if found.tag is None:
        raise ValueError("not a sidecar: it has no rdf:Description")
    first, last, prefix = found.tag
    tag = data[first:last]
    if prefix:
        pattern = rb"(\s" + re.escape(prefix.encode()) + rb":Rating\s*=\s*)(\"[^\"]*\"|'[^']*')"
        changed, count = re.subn(pattern, lambda match: match[1] + b'"' + digits + b'"', tag, count=1)
        if count:
            return data[:first] + changed + data[last:]
    name = re.match(rb"<[^\s/>]+", tag)
    assert name is not None
    declared = b"" if prefix else f' xmlns:xmp="{_XMP}"'.encode()
    added = declared + f' {prefix or "xmp"}:Rating="{rating}"'.encode()
    return data[: first + name.end()] + added + data[first + name.end() :]


class _Places:
    """Where in a sidecar the rating is, or should be.

    Attributes:
      rating: what it is; "" if there is none.
      element: begin and end of the text of an element `xmp:Rating`, and nothing; of an empty one, of its `/>`, and the
        end tag that it lacks.
      tag: begin and end of the start tag of the `rdf:Description` that has the rating as an attribute, else of the
        first one, and the prefix that stands for XMP's names there ("" if none does).
    """

    def __init__(self, data: bytes):
        self.element: tuple[int, int, bytes] | None = None
        self.tag: tuple[int, int, str] | None = None
        self.rating = ""
        self._data, self._prefixes, self._rated = data, [{}], False  # type: ignore[var-annotated]
        if data[:2] in (b"\xff\xfe", b"\xfe\xff") or re.match(rb"[^>]{0,200}encoding=.(?!utf-8)", data, re.IGNORECASE):
            raise ValueError("a sidecar that is not in UTF-8 cannot be changed")
        self._parser = parser = xml.parsers.expat.ParserCreate("UTF-8")
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.StartDoctypeDeclHandler = self._doctype
        self._open: list[tuple[str, int]] = []
        try:
            parser.Parse(data, True)
        except xml.parsers.expat.ExpatError as error:
            raise ValueError(f"not XML ({error})") from None

    def _doctype(self, *_: object) -> None:
        raise ValueError("a document type has no place in a sidecar")

    def _name(self, name: str) -> tuple[str, str]:
        prefix, _, local = name.rpartition(":")
        return self._prefixes[-1].get(prefix, ""), local

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        own = {key[6:]: value for key, value in attributes.items() if key.startswith("xmlns:")}
        self._prefixes.append(self._prefixes[-1] | own)
        first = self._parser.CurrentByteIndex
        last = first + _end_of_tag(self._data[first:])
        self._open.append((name, last))
        if self._name(name) == (_RDF, "Description"):
            prefix = next((key for key, value in self._prefixes[-1].items() if value == _XMP), "")
            has = any(":" in key and self._name(key) == (_XMP, "Rating") for key in attributes)
            if has:
                key = next(key for key in attributes if self._name(key) == (_XMP, "Rating"))
                prefix, self.rating = key.partition(":")[0], attributes[key].strip()
            if self.tag is None or (has and not self._rated):
                self.tag, self._rated = (first, last, prefix), has

    def _end(self, name: str) -> None:
        _, last = self._open.pop()
        if self._name(name) == (_XMP, "Rating") and self.element is None:
            empty = self._data[last - 2 : last] == b"/>"
            place = (last - 2, last) if empty else (last, self._parser.CurrentByteIndex)
            self.element = (*place, f"</{name}>".encode() if empty else b"")
            self.rating = self._data[slice(*place)].decode().strip(" \t\r\n/>")
        self._prefixes.pop()


def _end_of_tag(data: bytes) -> int:
    """Where a start tag ends, at whose `<` the data begin: `>` in quotes does not count."""
    match = re.match(rb"<(?:[^>\"']|\"[^\"]*\"|'[^']*')*>", data)
    if match is None:
        raise ValueError("not XML")
    return match.end()
