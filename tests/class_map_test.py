"""Names of a head's classes, and where a data set's classes stand there."""

import pytest

from libml.datasets import class_map


@pytest.fixture
def labels(tmp_path):
  path = tmp_path / "labels.txt"
  path.write_text("n01 tench, fish\n\nn02\tshark\nn03\n")
  return path


def test_first_word_of_each_line_is_the_name(labels):
  assert class_map.names(labels) == ("n01", "n02", "n03")
  assert class_map.head_rows(labels, ("n03", "n01")) == (2, 0)


def test_what_cannot_be_is_named(labels, tmp_path):
  with pytest.raises(
    ValueError, match=r"1 of 2 classes, such as 'n04', are no"
  ):
    class_map.head_rows(labels, ("n01", "n04"))
  with pytest.raises(
    FileNotFoundError, match="No file .*gone.txt; .*one per line"
  ):
    class_map.names(tmp_path / "gone.txt")
  labels.write_text("n01 a\nn02 b\nn01 c\n")
  with pytest.raises(ValueError, match="'n01' twice. Only the first word"):
    class_map.names(labels)
