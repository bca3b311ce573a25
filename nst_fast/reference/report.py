"""What models are worth, told: figures over several photographs, and one page with pictures and curves."""

from __future__ import annotations

import base64
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from nst_fast.loss.painting_size import best_painting_size
from nst_fast.reference.comparison import Comparison


def spread(values: list[float | None], ceiling: float) -> dict[str, Any]:
    """Return median, least and most of some figures; None counts as more than the ceiling."""
    known = [ceiling if v is None else v for v in values]
    return {
        "median": statistics.median(known),
        "least": min(known),
        "most": max(known),
        "not_reached": sum(v is None for v in values),
    }


def told(iterations: dict[str, Any], count: int) -> str:
    """Return the median of so many figures as text, which is a bound where it hangs on some that were not reached."""
    return f"{'at least ' if 2 * iterations['not_reached'] >= count else ''}{iterations['median']:g}"


def stroke_size(comparisons: Sequence[Comparison], model: str) -> dict[str, Any]:
    """Return how large a model's strokes are (docs/research/stroke.md); nothing where no sizes were compared."""
    results = [c.models[model] for c in comparisons]
    sizes = {size: statistics.mean(r.style_distances[size] for r in results) for size in results[0].style_distances}
    if not sizes:
        return {}
    best = best_painting_size(sizes)
    side = statistics.mean(min(r.image.size) for r in results)
    return {"painting_size": best, "relative_painting_size": best / side, "painting_sizes": sizes}


def summarise(comparisons: Mapping[str, Comparison], judged: Sequence[str], iterations: int) -> dict[str, Any]:
    """Return what a report says: over all photographs and of each.

    ``models`` has each model's mean losses and, for each optimiser, the iterations and seconds that pass it;
    ``photographs`` the losses and traces themselves. ``iterations`` is how many each optimiser had.
    """
    summary: dict[str, Any] = {}
    every = list(comparisons.values())
    for model in every[0].models:
        results = [c.models[model] for c in every]
        entry: dict[str, Any] = {"seconds": statistics.median(r.seconds for r in results)}
        if model in judged:
            entry |= stroke_size(every, model)
            entry["losses"] = {k: statistics.mean(r.losses[k] for r in results) for k in results[0].losses}
            entry["passed_by"] = {}
            for name in every[0].optimizers:
                rows = [c.optimizers[name].passes(c.models[model].losses["total"]) for c in every]
                ceilings = [c.optimizers[name].trace[-1]["seconds"] for c in every]
                seconds = [c if r is None else r["seconds"] for r, c in zip(rows, ceilings, strict=True)]
                entry["passed_by"][name] = {
                    "iterations": spread([None if r is None else r["iteration"] for r in rows], iterations),
                    "seconds": statistics.median(seconds),
                    "times_faster": statistics.median(s / r.seconds for s, r in zip(seconds, results, strict=True)),
                }
        summary[model] = entry
    photographs = {
        name: {
            "models": {
                k: {"seconds": m.seconds} | ({"losses": m.losses} if k in judged else {}) for k, m in c.models.items()
            },
            "optimizers": {k: list(o.trace) for k, o in c.optimizers.items()},
        }
        for name, c in comparisons.items()
    }
    return {"models": summary, "photographs": photographs}


def data_address(image: Image.Image) -> str:
    """Return a picture as an address that carries it."""
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=88, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def curve_svg(comparison: Comparison, judged: Sequence[str]) -> Markup:
    """Return the optimisers' curves and the models' levels as SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["svg.hashsalt"] = "nst_fast"  # the same report twice is the same file
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, result in comparison.optimizers.items():
        axes.plot([r["iteration"] for r in result.trace], [r["total"] for r in result.trace], label=name)
    for number, name in enumerate(judged):
        axes.axhline(comparison.models[name].losses["total"], linestyle="--", color=f"C{4 + number}", label=name)
    axes.set(xlabel="iterations", ylabel="total loss", yscale="log")
    axes.legend()
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None})
    return Markup(out.getvalue()[out.getvalue().index("<svg") :])


def report_html(report: Mapping[str, Any], comparisons: Mapping[str, Comparison], judged: Sequence[str]) -> str:
    """Return the report as one page that needs nothing else.

    Args:
        report: what report.json holds.
        comparisons: {photograph's name: comparison}.
        judged: the models that are compared by loss, not by picture and time alone.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data": data_address, "curve": curve_svg, "told": told}
    conditions = json.dumps({k: v for k, v in report.items() if k not in ("models", "photographs")}, indent=1)
    page = environment.get_template("report.html")
    return page.render(report=report, comparisons=comparisons, judged=judged, conditions=conditions)
