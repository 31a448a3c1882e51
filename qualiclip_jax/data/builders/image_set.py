"""What is known of a published image set: facts as data, and one function that reads its label files."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from qualiclip_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Record:
    """One image of a set, as the label files describe it.

    Attributes:
      image: path of the image file inside the archive, as the authors lay it out; its last parts are enough.
      mos: the rating in the set's own scale and direction; None for an image without one, which a rated set then
        leaves out (undistorted originals among the distorted images).
      mos_std: standard deviation of the opinions, where published.
      distortion: name of the distortion, where there is one.
      level: strength of the distortion, 1 the mildest; None where the set has no levels.
      reference: file name of the undistorted image, where there is one.
      split: "train", "validation" or "test", where the authors publish a split.
    """

    image: str
    mos: float | None = None
    mos_std: float | None = None
    distortion: str | None = None
    level: int | None = None
    reference: str | None = None
    split: str | None = None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """A published image set.

    Attributes:
      name: what commands call it, e.g. "koniq10k".
      title: what its authors call it.
      images: published number of images; of rated images, if the set is rated.
      url: where its authors offer it.
      terms: licence or terms of use, as its authors state them.
      archives: the files to download, for the instructions.
      citation: author, title, venue, year.
      read: takes the `Archive`, returns the records in the order of the label file.
      scale: lowest and highest rating of the set's own scale; None where it has no ends (the ratings that occur count).
      higher_is_better: direction of the published ratings; False for DMOS, which is then converted.
      rated: whether there are ratings.
      unrated: regular expression of the names of images that lie among the rated ones and have no rating.
      note: what users should know about how the ratings are read; one or two sentences.
      tried_on_real_files: whether the authors' own files have been read; otherwise only miniatures of the same layout.
    """

    name: str
    title: str
    images: int
    url: str
    terms: str
    archives: str
    citation: str
    read: Callable[[Any], Iterable[Record]]
    scale: tuple[float, float] | None = None
    higher_is_better: bool = True
    rated: bool = True
    unrated: str = ""
    note: str = ""
    tried_on_real_files: bool = False

    @property
    def tfds_split(self) -> str:
        """The tfds split that holds all images."""
        return "rated" if self.rated else "train"

    def rated_text(self) -> str:
        """How the images are rated, for a table: scale and which end is better."""
        if not self.rated:
            return "none"
        ends = f"{self.scale[0]:g} to {self.scale[1]:g}" if self.scale else "open scale"
        return ends + ("" if self.higher_is_better else " (DMOS)")

    def how_to_get(self) -> str:
        """One line: where to get the archive, under which terms."""
        return f"{self.title}: download {self.archives} from {self.url} ({self.terms})"

    def to_mos(self, rating: float | None) -> float:
        """Turns a published rating into one where higher is better; NaN if there is none.

        A DMOS is mirrored within its scale.
        """
        if rating is None:
            return math.nan
        if self.higher_is_better or self.scale is None:
            return rating
        low, high = self.scale
        return low + high - rating


def number(text: Any, where: str) -> float:
    """Reads a finite number; `where` says in an error which file and line it stands in."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{where}: {text!r} is not a number")
    return value
