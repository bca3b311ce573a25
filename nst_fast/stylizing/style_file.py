"""A painting's vector in a file of its own, NAME.style: a style for the gallery that it was learned with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from nst_fast.errors import UserError
from nst_fast.files import write_atomically

SUFFIX = ".style"
FORMAT = "nst_fast style 1"
AS_PAINTED = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]  # a colour map that leaves colours as they are: A, then b
LARGEST = 1 << 20  # bytes; of ours a vector has some 10 kB


@dataclass(frozen=True)
class StyleFile:
    """A painting's vector, and what is known of the painting.

    Attributes:
        gallery: identity of the gallery that it was learned with, as its metadata have it: all but its paintings.
        painting: its name first of all, and title, artist, licence.
        vector: scales and biases of the norms; then, where its colours are mapped, the colour map.
    """

    gallery: str
    painting: Mapping[str, str]
    vector: list[float]

    def save(self, path: str | Path) -> None:
        """Write it as JSON; raises UserError where the place cannot be written."""
        told = {"format": FORMAT, **asdict(self), "vector": [float(f"{value:.7g}") for value in self.vector]}
        write_atomically(Path(path), (json.dumps(told, ensure_ascii=False) + "\n").encode())

    @classmethod
    def load(cls, path: str | Path, gallery: str, length: int) -> StyleFile:
        """Read a file that `save` wrote.

        A vector without a colour map, for a gallery that has them, gets `AS_PAINTED`; the other way round it loses its
        own. Raises UserError where the file is something else, or its vector is not of the convolutions ``gallery`` and
        of the length.
        """
        try:
            with Path(path).open("rb") as file:
                told = json.loads(file.read(LARGEST))
            if told["format"] != FORMAT:
                raise ValueError(f"its format is {told['format']!r}, {FORMAT!r} is needed")
            found = cls(str(told["gallery"]), dict(told["painting"]), [float(value) for value in told["vector"]])
            if not np.isfinite(found.vector).all():
                raise ValueError("a number of its vector is not finite")
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}; `train` writes it into the folder of its run"
            ) from error
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            raise UserError(f"{path} is no style that `train` wrote: {error}") from error
        if len(found.vector) + len(AS_PAINTED) == length:
            found.vector.extend(AS_PAINTED)
        elif len(found.vector) - len(AS_PAINTED) == length:
            del found.vector[length:]
        if found.gallery != gallery or len(found.vector) != length:
            raise UserError(
                f"{path} was learned with the gallery {found.gallery}, the model is {gallery or 'another'}: "
                "use the gallery that it was made with, or train it anew"
            )
        return found
