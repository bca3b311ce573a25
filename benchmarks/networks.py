"""Transformation networks on onnxruntime: seconds a picture. python benchmarks/networks.py

Johnson's network at three widths, ours, and the peers' models where they are at hand, each at its own size with ours
beside it. All take turns on the same machine and threads; the fastest of the rounds counts, as others may disturb one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from nst_fast.commands.export import source_commit
from nst_fast.networks import create_network
from nst_fast.onnx_export import to_onnx

PEERS = Path(__file__).resolve().parents[2] / "shared" / "peers"
NETWORKS = {f"johnson {width}": ("johnson", width, 5) for width in (32, 16, 8)}
NETWORKS |= {
    "fast 64": ("fast", 64, 5),
    "fast 48, 4 blocks": ("fast", 48, 4),
    "fast 32": ("fast", 32, 5),
    "tiny 16": ("tiny", 16, 3),
}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=min(4, os.cpu_count() or 1))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = options.threads
    session_options.log_severity_level = 3

    def session(content: bytes) -> Any:
        return onnxruntime.InferenceSession(content, session_options, providers=["CPUExecutionProvider"])

    torch.manual_seed(0)
    made = {name: create_network(*given) for name, given in NETWORKS.items()}
    ours = {
        name: session(to_onnx(network, {"min_size": str(network.min_size)}).SerializeToString())
        for name, network in made.items()
    }
    results: dict[str, Any] = {}
    for size, (height, width) in SIZES.items():
        picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        seconds = measure({name: (one, picture) for name, one in ours.items()}, options.rounds)
        faster = {name: seconds["johnson 32"] / taken for name, taken in seconds.items()}
        results[size] = {"seconds": seconds, "times_faster_than_johnson_32": faster}
    for path in sorted(PEERS.glob("*.onnx")):
        peer = session(path.read_bytes())
        height, width = peer.get_inputs()[0].shape[2:]
        values = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32) * 255
        picture = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), dtype=np.uint8)
        seconds = measure(
            {path.stem: (peer, values), "fast 48, 4 blocks": (ours["fast 48, 4 blocks"], picture)}, options.rounds
        )
        results[f"{path.stem}, {width}×{height}"] = {
            "seconds": seconds,
            "times_faster": seconds[path.stem] / seconds["fast 48, 4 blocks"],
        }
    report = {
        "what": "seconds a picture, random weights, the fastest of the rounds",
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in made.items()},
        "threads": options.threads,
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
