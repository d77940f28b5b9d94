"""Letters in matplotlib's fonts that look like scikit-learn's digits.

As with those digits, a letter fills its frame. It is drawn in black and white
at four times the image's size; a grey level is the share of white pixels in a
4x4 block.
"""

import pathlib
import string
from typing import Any

import numpy as np

from libml.datasets import source

# Upper and lower case are one class where they look alike once they fill the
# frame. l and I are left out: in half of the fonts both are a bar.
CLASSES = (
  *("A", "B", "Cc", "D", "E", "F", "G", "H", "Jj", "Kk", "L", "M", "N", "Oo"),
  *("Pp", "Q", "R", "Ss", "T", "Uu", "Vv", "Ww", "Xx", "Yy", "Zz"),
  *("a", "b", "d", "e", "f", "g", "h", "i", "m", "n", "q", "r", "t"),
)
_BLOCK = 4
_DRAWN = 96  # Font size in pixels before distortion.


def glyphs(
  *,
  per_class: int = 100,
  test_per_class: int = 30,
  size: int = 8,
  seed: int = 0,
) -> source.Source:
  """Returns white letters on black in three equal channels; see CLASSES.

  Font, letter of the class, rotation, shear, width, position and stroke width
  are drawn at random for each image.

  Args:
    per_class: Training images per class.
    test_per_class: Test images per class; other draws from the same fonts.
    size: Height and width in pixels.
    seed: Decides all draws.
  """
  import matplotlib

  fonts = _fonts()
  drawn = {
    letter: [_draw(font, letter) for font in fonts]
    for letter in "".join(CLASSES)
  }

  def split(count: int, stream: int) -> source.Split:
    images, labels = [], []
    for label, letters in enumerate(CLASSES):
      rng = source.generator(seed, stream, label)
      for _ in range(count):
        letter = letters[rng.integers(len(letters))]
        glyph = drawn[letter][rng.integers(len(fonts))]
        images.append(_distort(glyph, size, rng))
        labels.append(label)
    levels = np.stack(images)[..., None]
    return source.Split(
      np.repeat(levels, 3, axis=-1), np.array(labels, np.int32)
    )

  return source.Source(
    name="glyphs",
    class_names=CLASSES,
    splits={"train": split(per_class, 0), "test": split(test_per_class, 1)},
    origin=f"letters in {len(fonts)} fonts of matplotlib "
    f"{matplotlib.__version__}; size {size}, seed {seed}",
  )


def _fonts() -> list[pathlib.Path]:
  """Returns the fonts of normal weight that contain all letters.

  A symbol font has other glyphs in their place, which shows in the glyphs'
  names. Bold fonts are left out: at 8x8 pixels the holes of letters fill up.
  """
  import matplotlib
  from matplotlib import ft2font

  folder = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf")
  fonts = []
  for path in sorted(folder.glob("*.ttf")):
    face = ft2font.FT2Font(str(path))
    bold = face.style_flags & ft2font.StyleFlags.BOLD
    if not bold and all(
      face.get_glyph_name(face.get_char_index(ord(letter))) == letter
      for letter in string.ascii_letters
    ):
      fonts.append(path)
  return fonts


def _draw(font: pathlib.Path, letter: str) -> Any:
  """Returns a grey PIL image of the letter, with room to distort it."""
  from PIL import Image
  from PIL import ImageDraw
  from PIL import ImageFont

  image = Image.new("L", (2 * _DRAWN, 2 * _DRAWN))
  ImageDraw.Draw(image).text(
    (_DRAWN, _DRAWN),
    letter,
    fill=255,
    font=ImageFont.truetype(str(font), _DRAWN),
    anchor="mm",
  )
  return image


def _distort(glyph: Any, size: int, rng: np.random.Generator) -> np.ndarray:
  """Returns the letter distorted at random, uint8 [size, size]."""
  from PIL import Image
  from PIL import ImageFilter

  turn, shear = rng.normal(0, 0.1), rng.normal(0, 0.15)
  cos, sin = np.cos(turn), np.sin(turn)
  matrix = np.array([[cos, -sin + shear * cos], [sin, cos + shear * sin]])
  shift = (np.eye(2) - matrix) @ [_DRAWN, _DRAWN]  # The centre stays.
  glyph = glyph.transform(
    glyph.size,
    Image.Transform.AFFINE,
    (*matrix[0], shift[0], *matrix[1], shift[1]),
    Image.Resampling.BILINEAR,
  )
  glyph = glyph.crop(glyph.getbbox())

  frame = size * _BLOCK
  # Scikit-learn's digits fill the height and three quarters of the width.
  height = round(frame * rng.uniform(0.92, 1.0))
  width = height * glyph.width / glyph.height * rng.uniform(0.75, 1.0)
  width = round(np.clip(width, frame / 8, frame * rng.uniform(0.7, 0.9)))
  glyph = glyph.resize((width, height), Image.Resampling.BOX)
  left = (frame - width) / 2 + rng.normal(0, frame / 32)
  left = round(np.clip(left, 0, frame - width))
  canvas = Image.new("L", (frame, frame))
  canvas.paste(glyph, (left, round(rng.uniform(0, frame - height))))

  # Thicken hairlines, which would vanish. A random threshold on the blurred
  # letter then varies the stroke width.
  canvas = canvas.filter(ImageFilter.MaxFilter(3))
  canvas = canvas.filter(ImageFilter.GaussianBlur(frame / 24))
  ink = np.asarray(canvas) > 255 * rng.uniform(0.4, 0.7)
  levels = ink.reshape(size, _BLOCK, size, _BLOCK).mean(axis=(1, 3))
  return np.round(255 * levels).astype(np.uint8)
