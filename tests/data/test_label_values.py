"""`LabelValues`: what the values of a label picture mean."""

import numpy as np
import pytest

from deeplab_fast.pictures import IGNORED
from deeplab_fast.pictures.label_values import LabelValues


def test_a_mask_of_0_and_255_is_two_classes():
    labels = np.array([[0, 255], [255, 0]], np.uint8)
    assert LabelValues.parse("0:0,255:1").apply(labels).tolist() == [[0, 1], [1, 0]]


def test_values_may_be_ignored():
    values = LabelValues.parse("0:0, 7:1, 9:ignore")
    assert values.apply(np.array([[0, 7, 9]])).tolist() == [[0, 1, IGNORED]]
    assert str(values) == "0:0,7:1,9:ignore"


def test_a_value_that_is_not_named_is_an_error():
    with pytest.raises(ValueError, match="labels: values are 3, 4, should be named in values, which is 0:0,255:1"):
        LabelValues.parse("0:0,255:1").apply(np.array([[0, 4, 3]]))


@pytest.mark.parametrize("text", ["", "0", "0:", "0:0,", "0:a", "-1:0", "0:0,0:1", "0:0;255:1"])
def test_what_is_not_like_a_table_of_values_is_an_error(text):
    with pytest.raises(ValueError, match="values: is"):
        LabelValues.parse(text)
