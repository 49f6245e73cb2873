"""Values of answers of unequal length as a matrix. Axes: S answers, L tokens of the longest."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def padded(columns: Sequence[NDArray[np.float32]]) -> tuple[Tensor, Tensor]:
    """`(S, L)` of values of answers of unequal length, in double precision, and where they are."""
    lengths = torch.tensor([len(each) for each in columns])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    values = torch.zeros(mask.shape, dtype=torch.float64)
    values[mask] = torch.from_numpy(np.concatenate(columns)).double()
    return values, mask
