"""Blind votes on pictures by several methods: which of two, and a ranking. docs/research/votes.md has the rules.

python benchmarks/votes.py prepare METHOD_FOLDER... --photographs FILE... --painting FILE --output FOLDER
python benchmarks/votes.py count FOLDER/key.json ANSWERS.json... --output VOTES.json

A method is a folder named after it with PHOTOGRAPH.png for every photograph. The untouched photograph is a method too.
FOLDER/viewer is what a viewer gets: a sheet a pair, pairs.json and index.html, which works without a server.
FOLDER/key.json says whose pictures are left and right, and is shown to no viewer.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from nst_fast.errors import UserError
from nst_fast.files import write_atomically
from nst_fast.stylizing.images import encode_image, load_image
from nst_fast.training.onnx_export import source_commit

QUESTIONS = {
    "overall": "Overall, which is the better picture?",
    "style": "Style: which is more like the painter's hand?",
    "content": "Content: in which is the scene better recognised?",
}
POINTS = {"left": 1.0, "tie": 0.5, "right": 0.0}  # of the left picture
UNTOUCHED = "untouched photograph"
GAP, LABEL = 12, 24  # px, between pictures and of letters
ROUNDS = 10_000  # of the bootstrap
PRIOR = 1.0  # wins, each way, that every compared pair has beforehand
Array = NDArray[np.float64]
Answers = dict[str, dict[str, str]]  # {pair: {question: answer}}


class Scene(NamedTuple):
    """A photograph, a painting, and what each method made of them."""

    photograph: Path
    painting: Path
    pictures: dict[str, Path]


Pair = tuple[Scene, str, str]  # the methods left and right


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def new(path: Path) -> Path:
    """Return a path; raises UserError where something is there already."""
    if os.path.lexists(path):
        raise UserError(f"{path} is there already, and votes are never replaced: give another --output")
    return path


# Pairs


def scenes_of_folders(folders: Sequence[Path], photographs: Sequence[Path], painting: Path) -> list[Scene]:
    """Return a scene a photograph, in the order of their names, with METHOD/PHOTOGRAPH.png of every folder."""
    methods = {folder.resolve().name: folder for folder in folders}
    if len(methods) < len(folders):
        raise UserError("two folders of methods have one name; needed: a name a method")
    photographs = sorted(photographs, key=lambda photograph: photograph.stem)
    return [Scene(p, painting, {m: f / f"{p.stem}.png" for m, f in methods.items()}) for p in photographs]


def scenes_of_json(path: Path) -> list[Scene]:
    """Return the scenes that a JSON lists; relative names of files are seen from its folder."""
    folder, listed = path.parent, read_json(path)
    try:
        return [
            Scene(folder / s["photograph"], folder / s["painting"], {m: folder / f for m, f in s["pictures"].items()})
            for s in listed
        ]
    except (TypeError, KeyError, AttributeError) as error:
        needed = '[{"photograph": FILE, "painting": FILE, "pictures": {METHOD: FILE}}]'
        raise UserError(f"{path} holds no scenes; needed: {needed}") from error


def check(scenes: Sequence[Scene], against: str | None) -> list[str]:
    """Return the methods by name, the untouched photograph last.

    Raises UserError where pictures are missing or differ in size, which would tell the methods apart.
    """
    if len({scene.photograph.stem for scene in scenes}) < 2:
        raise UserError("one photograph gives no interval; needed: two or more, of different names")
    if len({(scene.photograph.stem, scene.painting.stem) for scene in scenes}) < len(scenes):
        raise UserError("a photograph is there twice with one painting, or two have one name; needed: once")
    every = sorted({method for scene in scenes for method in scene.pictures})
    if not every or UNTOUCHED in every:
        raise UserError(f"needed: a method or more, none called {UNTOUCHED!r}, which is added by itself")
    methods = [*every, UNTOUCHED]
    if against is not None and against not in methods:
        raise UserError(f"--against {against} is none of the methods; needed: one of {', '.join(methods)}")
    for scene, method in itertools.product(scenes, methods[:-1]):
        if method not in scene.pictures or not scene.pictures[method].is_file():
            raise UserError(f"{method} has no picture of {scene.photograph.stem}: {scene.pictures.get(method, 'none')}")
    for scene in scenes:
        sizes = {method: "×".join(map(str, load_image(scene.pictures[method]).size)) for method in methods[:-1]}
        if len(set(sizes.values())) > 1:
            got = ", ".join(f"{method} {size}" for method, size in sizes.items())
            raise UserError(f"pictures of {scene.photograph.stem} must have one size, or it tells who made them: {got}")
        for file in (scene.photograph, scene.painting):
            load_image(file)
    return methods


def draw_pairs(scenes: Sequence[Scene], methods: Sequence[str], against: str | None, seed: int) -> list[Pair]:
    """Return pairs in random order; of two methods each is left in half of theirs, give or take half a pair."""
    generator, pairs = random.Random(seed), []
    for two in itertools.combinations(methods, 2):
        if against is None or against in two:
            start = generator.randrange(2)
            turned = [(start + number) % 2 for number in range(len(scenes))]
            generator.shuffle(turned)
            pairs += [(scene, two[turn], two[1 - turn]) for scene, turn in zip(scenes, turned, strict=True)]
    generator.shuffle(pairs)
    return pairs


def draw_sheet(left: Image.Image, right: Image.Image, photograph: Image.Image, painting: Image.Image) -> Image.Image:
    """Return two pictures of one size, pixel for pixel, with the photograph above the painting beside them, small."""
    (width, height), top = left.size, LABEL + GAP
    box = (max(width // 2, 6 * LABEL), max((height - top) // 2, 1))
    beside = 2 * width + 3 * GAP
    small = [ImageOps.contain(picture, box, Image.Resampling.LANCZOS) for picture in (photograph, painting)]
    sheet = Image.new("RGB", (beside + box[0] + GAP, height + top + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LABEL)
    for label, picture, x, y in (
        ("left", left, GAP, top),
        ("right", right, width + 2 * GAP, top),
        ("photograph", small[0], beside, top),
        ("painting", small[1], beside, top + height - box[1]),
    ):
        sheet.paste(picture, (x, y))
        draw.text((x, y - GAP // 2), label, "black", font, anchor="ls")
    return sheet


def show(scene: Scene, method: str) -> Image.Image:
    """Return a method's picture; the photograph itself is cut and scaled to the size of the others."""
    if method != UNTOUCHED:
        return load_image(scene.pictures[method])
    size = load_image(next(iter(scene.pictures.values()))).size
    return ImageOps.fit(load_image(scene.photograph), size, Image.Resampling.LANCZOS)


def prepare(options: argparse.Namespace) -> None:
    """Write sheets, pairs.json and index.html for viewers, and the key."""
    if len(options.methods) == 1 and options.methods[0].suffix == ".json":
        scenes = scenes_of_json(options.methods[0])
    elif options.photographs and options.painting:
        scenes = scenes_of_folders(options.methods, options.photographs, options.painting)
    else:
        raise UserError("folders of methods need --photographs FILE... and --painting FILE")
    methods = check(scenes, options.against)
    viewer, digest, key = new(options.output) / "viewer", hashlib.sha256(), {}
    pairs = draw_pairs(scenes, methods, options.against, options.seed)
    for number, (scene, left, right) in enumerate(pairs, 1):
        pictures = (show(scene, left), show(scene, right), load_image(scene.photograph), load_image(scene.painting))
        content = encode_image(draw_sheet(*pictures), ".png")
        digest.update(content)
        write_atomically(viewer / f"{number:04}.png", content)
        names = {"photograph": scene.photograph.stem, "painting": scene.painting.stem}
        key[f"{number:04}"] = {**names, "left": left, "right": right}
    told = {"set": digest.hexdigest()[:12], "questions": QUESTIONS, "pairs": {name: f"{name}.png" for name in key}}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("votes.html").render(votes=told)
    write_atomically(viewer / "index.html", page.encode())
    write_json(viewer / "pairs.json", told)
    opened = {"set": told["set"], "seed": options.seed, "against": options.against, "methods": methods}
    opened |= {f"{kind}s": sorted({names[kind] for names in key.values()}) for kind in ("photograph", "painting")}
    write_json(options.output / "key.json", opened | {"pairs": key})
    print(f"{len(pairs)} pairs for viewers in {viewer}; whose they are is in {options.output / 'key.json'}")


# Answers


def read_answers(path: Path, key: Any) -> tuple[str, Answers]:
    """Return a viewer's name and answers; raises UserError unless every question of every pair has one."""
    said = read_json(path)
    viewer, answers = (said.get("viewer"), said.get("answers")) if isinstance(said, dict) else (None, None)
    if not isinstance(viewer, str) or not viewer or not isinstance(answers, dict):
        needed = '{"viewer": NAME, "answers": {"0001": {"overall": "left", "style": "tie", "content": "right"}}}'
        raise UserError(f"{path} holds no viewer's answers; needed: {needed}")
    if said.get("set", key["set"]) != key["set"]:
        raise UserError(f"{path} answers set {said['set']}, the key is of set {key['set']}; needed: one set")
    if strange := sorted(answers.keys() - key["pairs"].keys()):
        raise UserError(f"{path} answers pair {strange[0]}, which the key does not have")
    for pair, question in itertools.product(key["pairs"], QUESTIONS):
        answer = answers[pair].get(question) if isinstance(answers.get(pair), dict) else None
        if not isinstance(answer, str) or answer not in POINTS:
            got = "nothing" if answer is None else repr(answer)
            raise UserError(f"{path} says {got} to {question} of pair {pair}; needed: one of {', '.join(POINTS)}")
    return viewer, answers


def tally(voted: Sequence[Answers], question: str, key: Any) -> Array:
    """Return points of the first method against the second, ties half: (photograph, first, second)."""
    methods, photographs = key["methods"], key["photographs"]
    points = np.zeros((len(photographs), len(methods), len(methods)))
    for answers, (pair, names) in itertools.product(voted, key["pairs"].items()):
        photograph, won = photographs.index(names["photograph"]), POINTS[answers[pair][question]]
        left, right = methods.index(names["left"]), methods.index(names["right"])
        points[photograph, left, right] += won
        points[photograph, right, left] += 1 - won
    return points


def share(points: Array) -> Array:
    """Return each method's share of its points against each other, (..., method, method); NaN where never compared."""
    both = points + points.swapaxes(-1, -2)
    return np.divide(points, both, out=np.full_like(points, np.nan), where=both > 0)


def rank_centrality(points: Array, prior: float = PRIOR) -> Array:
    """Return each method's score, (..., method), of sum 1: Rank Centrality.

    A walker goes from a method to another with the share of their points that the other has, divided by the greatest
    number of methods that one is compared with, or else stays. A method's score is how often the walker is there in the
    long run (Negahban, Oh and Shah, Operations Research 65, 2017); where shares are w_i / (w_i + w_j), as Bradley and
    Terry have them, it is proportional to w. Every compared pair has ``prior`` wins each way beforehand, a beta prior
    as in their regularised form, so that who always loses has a score too.

    Args:
        points: of the first method against the second, (..., method, method).
        prior: wins each way, 0 or more.

    Raises:
        UserError: some methods are compared with others not even by way of third ones.
    """
    compared = points + points.swapaxes(-1, -2) > 0
    count = points.shape[-1]
    if not (np.linalg.matrix_power(compared + np.eye(count), count) > 0).all():
        raise UserError("some methods are never compared with the others, not even by way of third ones: no ranking")
    going = np.nan_to_num(share(points + prior * compared)).swapaxes(-1, -2)
    going = going / compared.sum(-1).max(-1)[..., None, None]
    # The scores p solve p = p P; one of these equations follows from the others, and gives way to: the sum is 1.
    equations = going.swapaxes(-1, -2) - going.sum(-1)[..., None, :] * np.eye(count)
    equations[..., -1, :] = 1
    return np.linalg.solve(equations, np.broadcast_to(np.eye(count)[:, -1:], (*points.shape[:-1], 1)))[..., 0]


def count_votes(points: Array, methods: Sequence[str], against: str | None, seed: int) -> dict[str, Any]:
    """Return percentages and a ranking of (photograph, first, second) points, with 95 % intervals by a bootstrap."""
    whole, photographs = points.sum(0), len(points)
    draws = np.random.default_rng(seed).multinomial(photographs, [1 / photographs] * photographs, ROUNDS)
    resampled = np.einsum("rp,pab->rab", draws, points)
    percent, scores = 100 * share(whole), rank_centrality(whole)
    ends = np.percentile(100 * share(resampled), (2.5, 97.5), axis=0)
    score_ends = np.percentile(rank_centrality(resampled), (2.5, 97.5), axis=0)
    order = sorted(range(len(methods)), key=lambda n: methods[n] != against)
    pairs = {
        f"{methods[a]} against {methods[b]}": {
            **{"percent": percent[a, b].round(1), "interval": ends[:, a, b].round(1).tolist()},
            "above 50 %": bool(ends[0, a, b] > 50),
        }
        for a, b in itertools.combinations(order, 2)
        if whole[a, b] + whole[b, a]
    }
    ranking = {
        methods[n]: {"score": scores[n].round(4), "interval": score_ends[:, n].round(4).tolist()}
        for n in np.argsort(-scores, kind="stable")
    }
    return {"pairs": pairs, "ranking": ranking}


def table(results: dict[str, Any], kind: str, form: str) -> str:
    """Return percentages or rankings as a Markdown table, a column a question."""
    rows = [["", *results], ["---"] * (len(results) + 1)]
    for name in next(iter(results.values()))[kind]:
        figures = [found[kind][name] for found in results.values()]
        rows.append([name, *(form.format(**f) + ", above 50 %" * f.get("above 50 %", False) for f in figures)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def count(options: argparse.Namespace) -> None:
    """Count viewers' answers, write the report and print it as tables."""
    key = read_json(options.key)
    if not isinstance(key, dict) or not {"set", "seed", "against", "methods", "photographs", "pairs"} <= key.keys():
        raise UserError(f"{options.key} is no key; needed: the key.json that `prepare` wrote")
    voted: dict[str, Answers] = {}
    for path in options.answers:
        viewer, answers = read_answers(path, key)
        if viewer in voted:
            raise UserError(f"{path} is a second file of viewer {viewer}; needed: one a viewer")
        voted[viewer] = answers
    results = {}
    for question, asked in QUESTIONS.items():
        said = [answers[pair][question] for answers in voted.values() for pair in key["pairs"]]
        points = tally(list(voted.values()), question, key)
        found = count_votes(points, key["methods"], key["against"], options.seed)
        results[question] = {"asked": asked, "answers": {a: said.count(a) for a in POINTS}, **found}
    report = {
        "what": "blind votes on two pictures: percent of all answers to a question, ties half; Rank Centrality",
        "voters": f"{len(voted)} {options.voters}",
        **{name: value for name, value in key.items() if name != "pairs"},
        "intervals": f"95 %, bootstrap over photographs, {ROUNDS} rounds, seed {options.seed}",
        "prior": f"{PRIOR:g} win each way for every compared pair, in the ranking alone",
        "questions": results,
        "commit": source_commit(),
        "date": date.today().isoformat(),
    }
    write_json(new(options.output), report)
    print(f"Percent of the answers of {report['voters']}, ties half (95 % interval over photographs):\n")
    print(table(results, "pairs", "{percent:.0f} ({interval[0]:.0f} to {interval[1]:.0f})"))
    print("\nRank Centrality (95 % interval over photographs), best first by *overall*:\n")
    print(table(results, "ranking", "{score:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("prepare", help="make blind pairs of pictures")
    one.add_argument("methods", type=Path, nargs="+", help="folders of methods, or a JSON (docs/research/votes.md)")
    one.add_argument("--photographs", type=Path, nargs="+", metavar="FILE")
    one.add_argument("--painting", type=Path, metavar="FILE")
    one.add_argument("--against", metavar="METHOD", help="pairs of this method with every other; without: all pairs")
    one.add_argument("--seed", type=int, default=0, help="of the order of pairs, and of who is left")
    one.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new one")
    one.set_defaults(do=prepare)
    two = commands.add_parser("count", help="count viewers' answers")
    two.add_argument("key", type=Path, help="the key.json of `prepare`")
    two.add_argument("answers", type=Path, nargs="+", help="a file a viewer")
    two.add_argument("--voters", default="automatic viewers, not people", metavar="WHO", help="what the viewers are")
    two.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    two.add_argument("--output", type=Path, required=True, metavar="FILE", help="a new JSON")
    two.set_defaults(do=count)
    options = parser.parse_args()
    try:
        options.do(options)
    except UserError as error:
        sys.exit(f"votes.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
