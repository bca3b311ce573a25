"""Kill `nst-batch` at seeded random moments and give the same command again: python benchmarks/kill_batch.py

With Ray on a local cluster of two nodes, where the driver, an actor or a node is killed; and without Ray. When the
kills are done the command runs to its end, and what is there is compared with what `stylize` makes of the same folder:
a picture missing, twice, torn or other in any bit, a failure that is not on record once, or a file too many: exit code
1. A command that ends before its kills begins anew with an empty output.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import numpy as np
import onnxruntime
import pyarrow.dataset
import ray
from PIL import Image
from ray.cluster_utils import Cluster

from nst_fast.training.onnx_export import source_commit

BATCH = [sys.executable, "-m", "nst_fast.commands.batch"]
STYLIZE = [sys.executable, "-m", "nst_fast.commands.stylize"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
STORE_BYTES = 100_000_000  # of each node's object store
SECONDS_WITHOUT_A_NODE = 5.0
TRIES = 5


def make_pictures(folder: Path, number: int, broken: int, seed: int) -> None:
    """Make small pictures of squares, and cut some of them off, empty them or replace them by text."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    places = set(rng.choice(number, broken, replace=False).tolist())
    for index in range(number):
        height, width = rng.integers(64, 129, 2)
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((int(width), int(height)))
        path = folder / f"{index:05}.{('jpg', 'png')[index % 2]}"
        picture.save(path)
        if index in places:
            content = path.read_bytes()
            path.write_bytes([content[: len(content) // 2], b"", b"no picture"][index % 3])


def actors_below(process: int) -> dict[int, float]:
    """Return the process ids of Ray's actors below a process, and the processor's seconds of each."""
    parents, seconds = {}, {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = status.read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        number, fields = int(status.parent.name), after.split()
        parents[number] = int(fields[1])
        if "(ray::MapWork" in before:
            seconds[number] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_below(number: int) -> bool:
        while number > 1 and number != process:
            number = parents.get(number, 0)
        return number == process

    return {number: spent for number, spent in sorted(seconds.items()) if is_below(number)}


class Nodes:
    """Two nodes of one core each on this machine, as Ray's own tests make them; the driver runs on the first."""

    def __init__(self) -> None:
        kind = {"num_cpus": 1, "object_store_memory": STORE_BYTES}
        self.kind = kind
        self.cluster = Cluster(initialize_head=True, head_node_args={**kind, "include_dashboard": False})
        self.second = self.cluster.add_node(**kind)

    def replace_second(self) -> None:
        """Kill the second node as a power cut does, and put another in its place after a while."""
        self.cluster.remove_node(self.second, allow_graceful=False)
        time.sleep(SECONDS_WITHOUT_A_NODE)
        for _ in range(TRIES):  # other work may keep the machine too busy for Ray's 30 seconds
            try:
                self.second = self.cluster.add_node(**self.kind)
                return
            except Exception as error:
                print(error, flush=True)


def judge(output: Path, stylized: Path, pictures: Path) -> dict[str, int]:
    """Count what is wrong with an output."""
    results = pyarrow.dataset.dataset(output / "manifest").to_table().to_pylist()
    failures = pyarrow.dataset.dataset(output / "failures").to_table().to_pylist()
    done = Counter(row["id"] for row in results)
    failed = Counter(row["id"] for row in failures)
    wanted = {f"{pictures.name}/{path.name}" for path in stylized.iterdir()}
    broken = {f"{pictures.name}/{path.name}" for path in pictures.iterdir()} - wanted
    other = 0
    for row in results:
        path = output / row["output"]
        same = path.is_file() and path.read_bytes() == (stylized / Path(row["id"]).name).read_bytes()
        other += not same
    files = {path for path in output.rglob("*") if path.is_file()}
    expected = {output / row["output"] for row in results} | {output / "nst_batch.json", output / "summary.json"}
    expected |= {*output.glob("manifest/*.parquet"), *output.glob("failures/*.parquet")}
    return {
        "missing": len(wanted - set(done)),
        "twice": sum(done.values()) - len(done),
        "torn or other than stylize's": other,
        "failures missing": len(broken - set(failed)),
        "failures twice or wrong": sum(failed.values()) - len(broken & set(failed)),
        "files too many": len(files - expected),
        "files missing": len(expected - files),
    }


def kill_all(kinds: list[str], folder: Path, pictures: Path, base: list[str], rng: random.Random, mean: float) -> Any:
    """Kill what is named at random moments, and return the kills and what is wrong at each end of a command."""
    nodes = Nodes() if set(kinds) != {"process"} else None
    address = ["--address", nodes.cluster.address, "--actors", "2"] if nodes else ["--threads", "1"]
    kills, ends, failures, number = [], [], [], 0
    try:
        while True:
            output = folder / f"out {number}"
            command = [*BATCH, *base, *address, str(pictures), "-o", str(output)]
            log = (folder / "log.txt").open("a")
            process = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
            try:
                while process.poll() is None:
                    moment = time.monotonic() + rng.expovariate(1 / mean)
                    while process.poll() is None and (len(kills) == len(kinds) or time.monotonic() < moment):
                        time.sleep(0.01)
                    if process.poll() is not None:
                        break
                    kind = kinds[len(kills)]
                    if kind == "actor":
                        if not (there := [*actors_below(os.getpid())] if nodes else []):
                            continue  # there is none yet
                        os.kill(rng.choice(there), signal.SIGKILL)
                    elif kind == "node" and nodes:
                        nodes.replace_second()
                    else:
                        process.kill()
                    rows = [*output.glob("manifest/*.parquet")]
                    kills.append({"killed": kind, "round": number, "parts": len(rows)})
                    print(kills[-1], flush=True)
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
                log.close()
            if process.returncode == 1 and (output / "summary.json").exists():  # there are failures
                ends.append({"round": number, "kills": sum(k["round"] == number for k in kills)})
                ends[-1] |= {"wrong": judge(output, folder / "stylized", pictures)}
                print(ends[-1], flush=True)
                shutil.rmtree(output)
                number += 1
                if len(kills) == len(kinds):
                    return {"kills": kills, "ended by itself": failures, "ends": ends}
            elif process.returncode != -signal.SIGKILL:  # a cluster that went down, for instance
                said = (folder / "log.txt").read_text().splitlines()[-1]
                failures.append({"round": number, "exit code": process.returncode, "said": said})
                print(failures[-1], flush=True)
                if len(failures) > TRIES:
                    raise SystemExit("it ends by itself again and again")
    finally:
        if nodes:
            ray.shutdown()
            nodes.cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--broken", type=int, default=20)
    parser.add_argument("--kills", type=int, default=20, help="with Ray, and as many without")
    parser.add_argument("--seconds", type=float, default=8.0, help="between kills, on average, with Ray")
    parser.add_argument("--model", default="starry_night")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("ray", "process"))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    base, results = ["--model", options.model], {}
    with tempfile.TemporaryDirectory() as name:
        folder, pictures = Path(name), Path(name, "pictures")
        make_pictures(pictures, options.pictures, options.broken, options.seed)
        told = [*STYLIZE, *base, "--threads", "1", str(pictures), "-o", str(folder / "stylized")]
        subprocess.run(told, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if len(list((folder / "stylized").iterdir())) != options.pictures - options.broken:
            raise SystemExit("stylize did not fail at the broken pictures alone")
        rng = random.Random(options.seed)
        if options.only != "process":
            kinds = [("driver", "actor", "node")[index % 3] for index in range(options.kills)]
            rng.shuffle(kinds)
            results["with Ray, two nodes"] = kill_all(kinds, folder, pictures, base, rng, options.seconds)
        if options.only != "ray":
            kinds = ["process"] * options.kills
            results["without Ray"] = kill_all(kinds, folder, pictures, base, rng, options.seconds / 4)
    wrong = sum(sum(end["wrong"].values()) for result in results.values() for end in result["ends"])
    report = {
        "pictures": options.pictures,
        "broken": options.broken,
        "wrong in all": wrong,
        "results": results,
        "conditions": {
            "model": options.model,
            "seed": options.seed,
            "mean seconds between kills": {"with Ray": options.seconds, "without Ray": options.seconds / 4},
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, which also trained a network meanwhile",
            "versions": {"ray": ray.__version__, "onnxruntime": onnxruntime.__version__},
            "commit": source_commit(),
            "date": date.today().isoformat(),
        },
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{wrong} wrong → {options.output}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
