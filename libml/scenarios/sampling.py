"""Samples of the training images, for stages that do not get all of them."""

from collections.abc import Sequence

from libml import datasets


class Sample:
  """Draws training images, a share of all or a number of each class."""

  def __init__(
    self,
    images: datasets.Subset,
    *,
    ratio: float | None,
    shots: int | None,
    seed: int,
    redraw: bool = False,
    prefix: str = "",
  ):
    """Keeps the options; `draw` draws.

    Args:
      images: All training images.
      ratio: Share of them to draw, above 0 and at most 1; None: all.
      shots: Images to draw of each class, instead of a share; None: `ratio`
        counts.
      seed: Decides which images are drawn.
      redraw: Whether each call of `draw` draws anew; otherwise the first call
        draws, and later ones select from it.
      prefix: Of the options' names in errors, such as "learn_".

    Raises:
      ValueError: A ratio out of range.
    """
    if ratio is not None and not 0 < ratio <= 1:
      raise ValueError(
        f"scenario.{prefix}ratio={ratio} must be above 0 and at most 1, or "
        "None for all images."
      )
    self._images, self._ratio, self._shots = images, ratio, shots
    self._redraw, self._seed = redraw, seed
    self._option = f"scenario.{prefix}"
    self._drawn: datasets.Subset | None = None

  def draw(self, number: int, classes: Sequence[int]) -> datasets.Subset:
    """Returns the sample of some classes.

    Args:
      number: Added to the seed, where each call draws anew.
      classes: Class ids.

    Raises:
      ValueError: A class of which no image is drawn, or one that has fewer
        images than `shots`.
    """
    if self._drawn is None:
      self._drawn = self._take(self._images.select(classes), self._seed)
    if self._redraw:
      drawn = self._take(self._images.select(classes), self._seed + number)
    else:
      drawn = self._drawn.select(classes)
    empty = sorted(set(classes) - set(drawn.labels.tolist()))
    if empty:
      raise ValueError(
        f"{self._option}ratio={self._ratio} draws no image of the classes "
        f"{empty}; raise it, set {self._option}shots, or leave these classes "
        "out."
      )
    return drawn

  def _take(self, images: datasets.Subset, seed: int) -> datasets.Subset:
    if self._shots is not None:
      try:
        return images.take_per_class(self._shots, seed)
      except ValueError as error:
        raise ValueError(
          f"{self._option}shots={self._shots}: {error}"
        ) from None
    if self._ratio is None:
      return images
    count = int(self._ratio * len(images))
    if not count:
      raise ValueError(
        f"{self._option}ratio={self._ratio} of {len(images)} images is less "
        f"than one; raise it, or set {self._option}shots."
      )
    return images.take(count, seed)

  def describe(self) -> str:
    """Returns what is drawn, in words."""
    if self._shots is not None:
      size = f"{self._shots} images a class"
    else:
      size = "all images" if self._ratio is None else f"{self._ratio:g} of all"
    return f"{size}, drawn {'for each request' if self._redraw else 'once'}"
