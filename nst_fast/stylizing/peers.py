"""Other projects' models: how they lay a picture out, and sizes that they round, enlarge or do not take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from nst_fast.errors import UserError

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)  # px that the sides of a picture may have to be of, from the least on
TRIAL_SIDE = 128  # px
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
TYPES = FLOATS | {"tensor(uint8)": np.uint8}
NEEDED = "one input (N, H, W, 3) or (N, 3, H, W), uint8 or float, is needed"


def channels_first(inputs: Sequence[Any]) -> bool:
    """Return whether a model takes pictures as (N, 3, H, W), not (N, H, W, 3).

    Axes may be named anything or not at all: then floats come with their channels first, as they are trained, and
    integers last, as files have them. Raises ValueError, which says what it takes, where that is no picture.
    """
    if len(inputs) != 1:
        raise ValueError(f"it takes {len(inputs)} inputs")
    (one,) = inputs
    shape = list(one.shape)
    if one.type not in TYPES or len(shape) != 4:
        raise ValueError(f"it takes {one.type} of {tuple(shape)}")
    first, last = shape[1], shape[3]
    if (first == 3) != (last == 3):
        return first == 3
    if first != 3 and (isinstance(first, int) or isinstance(last, int)):
        raise ValueError(f"it takes {one.type} of {tuple(shape)}")
    return one.type in FLOATS


def trial(inputs: Sequence[Any]) -> dict[str, np.ndarray] | None:
    """Return a small picture for a model to try a device with; None where it takes no pictures."""
    try:
        first = channels_first(inputs)
    except ValueError:
        return None
    (one,) = inputs
    usual = (1, 3, TRIAL_SIDE, TRIAL_SIDE) if first else (1, TRIAL_SIDE, TRIAL_SIDE, 3)
    shape = [fixed if isinstance(fixed, int) else free for fixed, free in zip(one.shape, usual, strict=True)]
    return {one.name: np.zeros(shape, TYPES[one.type])}


def same_layout(output: np.ndarray, first: bool) -> np.ndarray:
    """Return a model's output as (N, H, W, 3); raises ValueError, which says what it is, where it is no picture."""
    if output.ndim == 3:
        output = output[None]
    if output.ndim == 4 and output.shape[1 if first else 3] == 3:
        return output.transpose(0, 2, 3, 1) if first else output
    if output.ndim == 4 and output.shape[3 if first else 1] == 3:
        return output if first else output.transpose(0, 2, 3, 1)
    raise ValueError(f"its output is {output.dtype} of {output.shape}, no picture")


def padded(pictures: np.ndarray, multiple: int) -> np.ndarray:
    """Return pictures (N, H, W, 3) with their last rows and columns repeated until both sides are of a multiple."""
    rows, columns = (-side % multiple for side in pictures.shape[1:3])
    return np.pad(pictures, ((0, 0), (0, rows), (0, columns), (0, 0)), mode="edge") if rows or columns else pictures


def run_at_size(
    pictures: np.ndarray, run: Callable[[np.ndarray], np.ndarray], multiples: Sequence[int] = MULTIPLES
) -> tuple[np.ndarray, int]:
    """Return the output of a model of anyone's for pictures, of exactly their size, and the multiple that it needs.

    A model may refuse odd sizes, or round them up or down: the pictures are then padded, and its output cut to them.
    It may enlarge by whole numbers: its output is then made smaller.

    Args:
        pictures: uint8 (N, H, W, 3).
        run: the model, whose output may have any size.
        multiples: those to try.

    Raises UserError, the first reason why it did not work, where none does.
    """
    height, width = pictures.shape[1:3]
    tried: set[tuple[int, ...]] = set()
    first_error: UserError | None = None
    for multiple in multiples:
        given = padded(pictures, multiple)
        if given.shape in tried:
            continue
        tried.add(given.shape)
        try:
            output = run(given)
        except UserError as error:
            first_error = first_error or error
            if "alloc" in str(error) or "memory" in str(error):  # no more of it for larger ones
                break
            continue
        times = output.shape[1] // given.shape[1]
        if times >= 1 and output.shape[1:3] == (times * given.shape[1], times * given.shape[2]):
            output = output[:, : times * height, : times * width]
            return (output if times == 1 else np.stack([smaller(one, (width, height)) for one in output])), multiple
        got = f"{output.shape[2]}×{output.shape[1]} of a picture of {given.shape[2]}×{given.shape[1]}"
        first_error = first_error or UserError(f"the model's output is {got}, no whole number of times its size")
    assert first_error is not None
    raise first_error


def smaller(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a uint8 picture (H, W, 3) at a smaller size (width, height), its pixels averaged."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BOX))
