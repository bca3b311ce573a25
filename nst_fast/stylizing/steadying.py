"""Frames of a clip tied to the ones before: optical flow carries what was painted along with what it was painted on."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

MOST_CARRIED = 0.95  # of a pixel comes from the frame before at the most, so that what is wrong fades
ROUND_TRIP = 0.01, 0.5  # of the squared lengths of flows there and back, px²; and px² beside it
FADED = 0.04  # of 1: brightness that may change along the flow; light and shadow do not carry strokes
PLAIN = 5.0  # of 255: where brightness deviates less, within 9 px, there is nothing that flow could follow
FADED_LOST = 0.02  # of 1: as FADED, where no flow was found
AROUND_LOST, KNOWN = 1 / 12, 0.05  # of the short side: a square around; the part of it that must have flow
CUT = 0.4  # of all pixels: where fewer are found again, another scene begins
FINE, AROUND, SHARPEST = 1.25, 8.0, 2.0  # px, below which detail is fine; px, of its surroundings; largest gain


class Steadying:
    """Blends each stylized frame of a clip with the one before, moved to where things are now.

    Flow is DIS (Kroeger et al. 2016), and holds where there and back lead home (Sundaram et al. 2010) and brightness is
    the same. Where it finds nothing to follow, on plain walls most of all, strokes move with what is around, if
    brightness is the same then. What blending takes from fine detail is given back: averages of strokes are smears.

    Args:
        amount: 0 leaves frames as they are, 1 ties them most.
        threads: for flow; 0 takes every core.
    """

    def __init__(self, amount: float, threads: int = 0) -> None:
        self.amount = amount
        if threads:
            cv2.setNumThreads(threads)
        self.flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        self.last: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, photograph: Image.Image, stylized: Image.Image) -> Image.Image:
        """Return the stylized frame of a photograph, RGB, tied to the frame that was given before."""
        seen = photograph if photograph.size == stylized.size else photograph.resize(stylized.size)
        brightness, painted = np.asarray(seen.convert("L")), np.asarray(stylized, np.float32)
        if self.last is not None and self.last[0].shape == brightness.shape:
            painted = self.tied(*self.last, brightness, painted)
        self.last = brightness, painted
        return Image.fromarray(painted.clip(0, 255).round().astype(np.uint8))

    def tied(self, before: np.ndarray, shown: np.ndarray, now: np.ndarray, painted: np.ndarray) -> np.ndarray:
        """Return a painted frame (H, W, 3) blended with the one shown before; itself where the scene is another."""
        back, forth = self.flow.calc(now, before, None), self.flow.calc(before, now, None)
        rows, columns = np.indices(now.shape, np.float32)
        here = np.stack([columns, rows], 2)
        places = here + back
        home = cv2.remap(forth, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        away = ((back + home) ** 2).sum(2)
        led_home = away <= ROUND_TRIP[0] * ((back**2).sum(2) + (home**2).sum(2)) + ROUND_TRIP[1]
        known = led_home & ~is_plain(now)
        lost = ~led_home & known.any()
        places = here + np.where(lost[..., None], surroundings(back, known), back)
        faded = now - cv2.remap(
            before.astype(np.float32), places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        found = np.abs(cv2.GaussianBlur(faded, (0, 0), FINE)) <= 255 * np.where(lost, FADED_LOST, FADED)
        found &= (led_home | lost) & ((places > -0.5) & (places < np.array(now.shape[::-1]) - 0.5)).all(2)
        if found.mean() < CUT:
            return painted
        mask = found.astype(np.float32)
        share = MOST_CARRIED * self.amount * np.minimum(mask, cv2.GaussianBlur(mask, (0, 0), FINE))[..., None]
        carried = cv2.remap(shown, places, None, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT)
        blend = painted + share * (carried - painted)
        detail = blend - cv2.GaussianBlur(blend, (0, 0), FINE)
        return blend + (gain(detail, painted - cv2.GaussianBlur(painted, (0, 0), FINE)) - 1) * detail


def is_plain(brightness: np.ndarray) -> np.ndarray:
    """Return where brightness (H, W), of 255, hardly varies."""
    pixels = brightness.astype(np.float32)
    return cv2.blur(pixels**2, (9, 9)) - cv2.blur(pixels, (9, 9)) ** 2 < PLAIN**2


def surroundings(flow: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the mean (H, W, 2) of a flow where it is known around each place, or, if that is hardly, anywhere."""
    mask, side = known.astype(np.float32)[..., None], 2 * int(AROUND_LOST * min(known.shape) / 2) + 1
    sums, parts = np.split(cv2.blur(np.concatenate([flow * mask, mask], 2), (side, side)), [2], 2)
    anywhere = flow[known].mean(0) if known.any() else np.float32(0)
    return np.where(parts > KNOWN, sums / np.maximum(parts, KNOWN), anywhere)


def gain(detail: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return what fine detail (H, W, 3) is multiplied by, (H, W, 1), to be as strong as another around each place."""
    here, there = (cv2.GaussianBlur((d**2).mean(2), (0, 0), AROUND) for d in (detail, wanted))
    return np.sqrt((there + 1) / (here + 1)).clip(1, SHARPEST)[..., None]
