"""Records and data sets that make no sense are refused."""

import numpy as np
import pytest

from jaxdp.datasets.records import Dataset, Records


def test_labels_out_of_range_are_refused():
    records = Records(np.zeros((2, 8, 8, 1)), np.array([0, 10]))
    with pytest.raises(ValueError, match="test records go from 0 to 10: expected 0 to 9"):
        Dataset(Records(records.inputs, np.array([0, 1])), records, 10, 0.0, 1.0, "")


@pytest.mark.parametrize(("inputs", "labels"), [(2, 3), (0, 0)])
def test_records_need_one_label_each(inputs, labels):
    with pytest.raises(ValueError, match=f"{inputs} inputs and {labels} labels"):
        Records(np.zeros((inputs, 4)), np.zeros(labels, int))
