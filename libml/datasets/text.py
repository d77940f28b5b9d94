"""Text files of a user: lists, pairs and names."""

import pathlib


def read(path: pathlib.Path) -> str:
  """Returns the text of a UTF-8 file, without a byte-order mark.

  Raises:
    ValueError: The file has another encoding.
  """
  try:
    return path.read_text(encoding="utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(
      f"{path} is not UTF-8 text (byte {error.start}: {error.reason}): save it "
      "as UTF-8."
    ) from None
