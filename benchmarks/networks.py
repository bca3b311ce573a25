"""Transformation networks on onnxruntime: seconds a picture. python benchmarks/networks.py

Johnson's network at three widths, ours, and the peers' models where they are at hand, each at its own size with ours
beside it; some of ours in 8-bit integers, too. All take turns on the same machine and threads, in sessions as `stylize`
makes them; the fastest of the rounds counts, as others may disturb one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import nst_fast  # noqa: F401  before onnxruntime: it turns its telemetry off

# isort: split
import numpy as np
import onnx
import onnxruntime
import torch

from nst_fast.stylizing.quantization import quantize
from nst_fast.stylizing.stylizer import Stylizer
from nst_fast.training.networks import create_network
from nst_fast.training.onnx_export import export, source_commit
from nst_fast.training.photographs import bundled_photographs

PEERS = Path(__file__).resolve().parents[2] / "shared" / "peers"
NETWORKS = {f"johnson {width}": ("johnson", width, 5) for width in (32, 16, 8)}
NETWORKS |= {
    "fast 64": ("fast", 64, 5),
    "fast 48, 4 blocks": ("fast", 48, 4),
    "fast 32": ("fast", 32, 5),
    "tiny 16": ("tiny", 16, 3),
}
INT8 = ("johnson 32", "fast 48, 4 blocks", "fast 32", "tiny 16")
SIZES = {"720p": (720, 1280), "1080p": (1080, 1920)}


def measure(sessions: dict[str, tuple[Any, np.ndarray]], rounds: int) -> dict[str, float]:
    """Return the fastest of some runs of every session, in seconds; they take turns."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, (session, picture) in sessions.items():
            began = time.perf_counter()
            session.run(None, {session.get_inputs()[0].name: picture})
            times[name].append(time.perf_counter() - began)
    return {name: min(taken) for name, taken in times.items()}


def create_session(model: Path, threads: int, **foreign: Any) -> Any:
    """Return a session as `stylize` makes it on a machine of so many cores: its threads stay on one each."""
    return Stylizer(model, 0 if threads == os.cpu_count() else threads, device="cpu", **foreign).session


def compare(ours: dict[str, Path], threads: int, rounds: int) -> dict[str, Any]:
    """Return seconds of our networks at two sizes, and beside each peer's at the peer's."""
    sessions = {name: create_session(path, threads) for name, path in ours.items()}
    results: dict[str, Any] = {}
    for size, (height, width) in SIZES.items():
        picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        seconds = measure({name: (session, picture) for name, session in sessions.items()}, rounds)
        faster = {name: seconds["johnson 32"] / taken for name, taken in seconds.items()}
        results[size] = {"seconds": seconds, "times_faster_than_johnson_32": faster}
    for path in sorted(PEERS.glob("*_[0-9][0-9][0-9].onnx")):
        peer = create_session(path, threads, pixel_range=255)
        height, width = peer.get_inputs()[0].shape[2:]
        values = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32) * 255
        picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        beside = {name: (session, picture) for name, session in sessions.items() if name.startswith("fast 48")}
        seconds = measure({path.stem: (peer, values), **beside}, rounds)
        faster = {name: seconds[path.stem] / seconds[name] for name in beside}
        results[f"{path.stem}, {width}×{height}"] = {"seconds": seconds, "times_faster_than_the_peer": faster}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, nargs="+", default=[min(4, os.cpu_count() or 1), 1])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    made = {name: create_network(*given) for name, given in NETWORKS.items()}
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = {name: export(network, Path(folder) / f"{name}.onnx", {}) for name, network in made.items()}
        for name in INT8:
            model = quantize(ours[name], bundled_photographs())
            ours[f"{name}, int8"] = Path(folder) / f"{name} int8.onnx"
            onnx.save(model, ours[f"{name}, int8"])
        for threads in options.threads:
            results[f"{threads} threads" if threads > 1 else "1 thread"] = compare(ours, threads, options.rounds)
    report = {
        "what": "seconds a picture, random weights, the fastest of the rounds",
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in made.items()},
        "device": f"CPU {torch.backends.cpu.get_cpu_capability()}",
        "versions": {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "date": date.today().isoformat(),
        "results": results,
    }
    options.output.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
