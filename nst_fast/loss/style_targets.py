"""Style targets: what a painting is compared by, which is all of it that training needs."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from nst_fast.assets import ASSETS, cache_folder
from nst_fast.downloads import Progress, fetch, file_hash
from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.loss.loss_networks import LossNetwork
from nst_fast.loss.perceptual_loss import ENERGY, SLICED, Targets, split_name, style_target
from nst_fast.loss.tensors import to_tensor
from nst_fast.loss.terms import QUANTILES, SLICES, are_moments, colour_moments
from nst_fast.stylizing.folders import find_pictures
from nst_fast.stylizing.images import load_image, resize_painting
from nst_fast.weights import read_safetensors

FORMAT = "nst_fast style targets 2"
LEAST_SIZE, LARGEST_SIZE = 16, 16384  # px, short side of a painting
COLOURS = "colours"  # a style target: the painting's `colour_moments`, at no more than COLOURS_SIZE
COLOURS_SIZE = 512  # px, short side: brush strokes still have colours of their own, as in pictures that people make


@dataclass(frozen=True)
class StyleTargets:
    """What one painting is compared by, {size: {name: target}}, as one loss network sees it.

    Attributes:
        loss_network: identity of the loss network, its name and the sha256 of its weights.
        image_sha256: sha256 of the painting's file.
        sizes: for each size (short side of the painting, px) the targets by name, as `style_target` has them.
    """

    loss_network: str
    image_sha256: str
    sizes: Mapping[int, Targets]

    def save(self, path: str | Path) -> None:
        """Write safetensors in float16: upper triangles of Gram matrices, square roots of them and of energies.

        Quantiles and colours stay as they are. float16 ends at 65,504, which Gram matrices of a plain VGG pass and
        their roots do not. Raises UserError where a target is larger still, or the place cannot be written.
        """
        tensors = {f"{s}.{n}": packed(n, t).half() for s, targets in self.sizes.items() for n, t in targets.items()}
        endless = next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)
        if endless is not None:
            raise UserError(f"{endless} is past what float16 holds; give the picture itself with style.image=FILE")
        metadata = {"format": FORMAT, "loss_network": self.loss_network, "image_sha256": self.image_sha256}
        write_atomically(Path(path), save({name: t.contiguous() for name, t in tensors.items()}, metadata))

    @classmethod
    def load(cls, path: str | Path) -> StyleTargets:
        """Read a file that `save` wrote; raises UserError where it is something else."""
        tensors, metadata = read_safetensors(path)
        if metadata.get("format") != FORMAT:
            raise UserError(
                f"{path} holds no style targets of this version: its format is {json.dumps(metadata.get('format'))}, "
                f"{json.dumps(FORMAT)} is needed; give the picture itself with style.image=FILE"
            )
        sizes: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            size, _, name = key.partition(".")
            target = unpacked(name, tensor)
            if target is None or not size.isdecimal() or len(size) > 9:
                raise UserError(f"{path} holds no style targets: {json.dumps(key)} is none")
            sizes.setdefault(int(size), {})[name] = target
        return cls(metadata.get("loss_network", "unknown"), metadata.get("image_sha256", "unknown"), sizes)

    def at(self, size: int, loss_network: str, image_sha256: str | None = None) -> Targets:
        """Return the targets at a size, or refuse: UserError where size, loss network or picture differ."""
        if self.loss_network != loss_network:
            raise UserError(
                f"the style targets were made with loss network {self.loss_network}, this run has {loss_network}; "
                "give the picture itself with style.image=FILE"
            )
        if image_sha256 is not None and self.image_sha256 != image_sha256:
            raise UserError(f"the style targets are of a picture with sha256 {self.image_sha256}, not {image_sha256}")
        if size not in self.sizes:
            sizes = ", ".join(str(s) for s in sorted(self.sizes))
            raise UserError(
                f"the style targets have sizes {sizes}, not style.size={size}; give the picture with style.image=FILE"
            )
        return self.sizes[size]


def packed(name: str, target: Tensor) -> Tensor:
    """Return a style target as `StyleTargets.save` keeps it: (n,) of a Gram matrix, (1,) of an energy, or as it is."""
    kind, _ = split_name(name)
    if kind == SLICED or name == COLOURS:
        return target[0]
    values = target if kind == ENERGY else target[0][tuple(torch.triu_indices(*target.shape[1:]))]
    return values.sign() * values.abs().sqrt()


def unpacked(name: str, tensor: Tensor) -> Tensor | None:
    """Return the style target that `packed` made a tensor of, first axis 1; None where it is none."""
    kind, _ = split_name(name)
    values = tensor if kind == SLICED or name == COLOURS else tensor * tensor.abs()
    if not values.isfinite().all():
        return None
    if name == COLOURS:
        return values[None] if values.ndim == 2 and are_moments(values) else None
    if kind == SLICED:
        return values[None] if values.shape == (SLICES, QUANTILES) else None
    if kind == ENERGY:
        return values if values.shape == (1,) and values[0] >= 0 else None
    channels = int(((8 * values.numel() + 1) ** 0.5 - 1) / 2)
    if not channels or values.shape != (channels * (channels + 1) // 2,):
        return None
    gram = torch.zeros(1, channels, channels)
    rows, columns = torch.triu_indices(channels, channels)
    gram[0, rows, columns] = gram[0, columns, rows] = values
    return gram


@torch.no_grad()
def painting_targets(
    painting: Image.Image, loss_network: LossNetwork, names: Collection[str], size: int
) -> dict[str, Tensor]:
    """Return a painting's style targets by name at a short side in pixels, its proportions kept; on the CPU.

    Raises UserError where it is so long that no memory holds it at that size.
    """
    device = next(loss_network.parameters()).device
    image = to_tensor(resize_painting(painting, size)).to(device)
    layers = {name: split_name(name)[1] for name in names if name != COLOURS}
    features = loss_network(image, list(dict.fromkeys(layers.values())))
    made = {name: style_target(loss_network, name, features[layer]).cpu() for name, layer in layers.items()}
    if COLOURS in names:
        made[COLOURS] = colour_moments(to_tensor(resize_painting(painting, min(COLOURS_SIZE, *painting.size))))
    return made


def make_style_targets(
    image: str | Path, loss_network: LossNetwork, sizes: Iterable[int], names: Iterable[str]
) -> StyleTargets:
    """Return the style targets of a picture file at several sizes."""
    painting, names = load_image(image), list(names)
    made = {size: painting_targets(painting, loss_network, names, size) for size in sizes}
    return StyleTargets(loss_network.identity, file_hash(image), made)


def fetch_painting(url: str, sha256: str, progress: Progress | None = None) -> Path:
    """Return a painting's file: from the folder NST_FAST_STYLES, the cache, or its pinned address, hash checked.

    Raises UserError where it cannot be had or its sha256 differs.
    """
    name = url.rsplit("/", 1)[1]
    own = os.environ.get("NST_FAST_STYLES")
    if own:
        path = Path(os.path.expanduser(own)) / name
        if not path.is_file():
            raise UserError(f"NST_FAST_STYLES={own} has no {name}")
    else:
        advice = "give the painting with style.image=FILE, or a folder with NST_FAST_STYLES=FOLDER"
        path = fetch(url, cache_folder() / "styles" / name, f"sha256:{sha256}", advice, progress)
    if (got := file_hash(path)) != sha256:
        raise UserError(f"{path} is another picture: its sha256 is {got}, {sha256} is needed")
    return path


def find_paintings(folder: str | Path) -> dict[Path, dict[str, str]]:
    """Return the paintings of a folder, and what is known of each: name, and title, artist, year, licence, source.

    A painting is called after its file. manifest.json in the folder, a list of objects, may name it otherwise and say
    the rest of those whose ``file`` it names, and ``style_size``, px, where that is not the style's; then it alone says
    which paintings there are.

    Raises UserError where there is none, two have one name, a size is none or the manifest cannot be read.
    """
    manifest = Path(folder) / "manifest.json"
    listed: list[dict[str, Any]] = []
    if manifest.is_file():
        try:
            listed = json.loads(manifest.read_text("utf-8"))
            files = [Path(folder) / entry["file"] for entry in listed]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{manifest} cannot be read; a list of {{'file': NAME, …}} is needed: {error}") from error
    else:
        files = find_pictures(folder)
        listed = [{} for _ in files]
    known = ("title", "artist", "year", "licence", "source", "style_size")
    sizes = [entry.get("style_size", LEAST_SIZE) for entry in listed]
    if unknown := [size for size in sizes if type(size) is not int or not LEAST_SIZE <= size <= LARGEST_SIZE]:
        raise UserError(
            f"{manifest} gives a painting the style_size {unknown[0]!r}; "
            f"a whole number of px from {LEAST_SIZE} to {LARGEST_SIZE} is needed"
        )
    found = {
        file: {"name": str(entry.get("name", file.stem))} | {key: str(entry[key]) for key in known if key in entry}
        for file, entry in zip(files, listed, strict=True)
    }
    names = [told["name"] for told in found.values()]
    twice = next((name for name in names if names.count(name) > 1), None)
    wrong = next((name for name in names if not name.strip() or set(name) & set("=,/\\")), None)
    if twice is not None or wrong is not None:
        raise UserError(
            f"{folder} has {'two paintings' if wrong is None else 'a painting'} of the name {twice or wrong!r}"
        )
    if not found:
        raise UserError(f"{folder} has no paintings")
    return found


def find_style_targets(
    loss_network: LossNetwork,
    names: Iterable[str],
    *,
    name: str,
    size: int,
    image: str | Path | None = None,
    targets: str | Path | None = None,
    url: str | None = None,
    sha256: str | None = None,
    progress: Progress | None = None,
) -> tuple[Targets, str]:
    """Return a painting's style targets by name, and its picture's sha256.

    They come from the picture, a style target file, the shipped file where it fits the loss network, names and size,
    or else from the picture fetched from its address, in this order. Raises UserError where none can be had.
    """
    wanted = list(names)
    if image is None and targets is not None:
        made = StyleTargets.load(targets)
        return made.at(size, loss_network.identity, sha256), made.image_sha256
    offline, shipped = "", ASSETS / "style_targets" / f"{name}.safetensors"
    if image is None and shipped.is_file():
        made = StyleTargets.load(shipped)
        fits = made.loss_network == loss_network.identity and size in made.sizes and made.image_sha256 == sha256
        if fits and set(wanted) <= set(made.sizes[size]):
            return made.sizes[size], made.image_sha256
        sizes = ", ".join(map(str, sorted(made.sizes)))
        offline = f"; loss=balanced loss_network=vgg16_slim at style.size {sizes} needs no picture for its own layers"
    if image is None and url is not None and sha256 is not None:
        try:
            image = fetch_painting(url, sha256, progress)
        except UserError as error:
            raise UserError(f"{error}{offline}") from error
    if image is None:
        raise UserError("a picture is needed: style=custom style.image=FILE")
    return painting_targets(load_image(image), loss_network, wanted, size), file_hash(image)
