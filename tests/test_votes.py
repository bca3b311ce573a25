"""Blind votes: what viewers get, answers counted by hand, Rank Centrality against a walk and against known truths."""

import importlib.util
import itertools
import json
import re
import shutil
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "votes.py"
if not SCRIPT.exists():
    pytest.skip("the benchmarks are not in the source distribution", allow_module_level=True)
spec = importlib.util.spec_from_file_location("votes", SCRIPT)
votes = importlib.util.module_from_spec(spec)
sys.modules["votes"] = votes
spec.loader.exec_module(votes)

METHODS = ["zebu", "quokka", "narwhal"]
PHOTOGRAPHS = ["harbour", "meadow", "tower", "uncle", "violin"]
SIZE = (160, 120)
QUESTIONS = ["overall", "style", "content"]


def noise(seed, size=SIZE):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Photographs, a painting, and folders of methods whose pictures' metadata say who made them."""
    monkeypatch.chdir(tmp_path)
    seeds = itertools.count()
    for name in PHOTOGRAPHS:
        noise(next(seeds), (240, 160)).save(f"{name}.png")
    noise(next(seeds), (90, 200)).save("gogh.png")
    for method in METHODS:
        Path(method).mkdir()
        for name in PHOTOGRAPHS:
            info = PngImagePlugin.PngInfo()
            info.add_text("model", method)
            noise(next(seeds)).save(Path(method, f"{name}.png"), pnginfo=info)
    return tmp_path


def command(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["votes.py", *map(str, arguments)])
        votes.main()


def prepare(output, *more, methods=METHODS):
    photographs = [f"{name}.png" for name in PHOTOGRAPHS]
    command("prepare", *methods, "--photographs", *photographs, "--painting", "gogh.png", "--output", output, *more)
    return json.loads(Path(output, "key.json").read_text())


def chunks(png):
    """The kinds of chunks that a PNG has: everything that is no pixel has one of its own."""
    kinds, at = set(), 8
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        kinds.add(kind)
        at += length + 12
    return kinds


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# What viewers get


def test_every_photograph_is_shown_by_every_two_methods_the_untouched_photograph_among_them(pictures):
    key = prepare("votes")
    every = [*sorted(METHODS), "untouched photograph"]
    assert key["methods"] == every
    asked = sorted((pair["photograph"], *sorted([pair["left"], pair["right"]])) for pair in key["pairs"].values())
    assert asked == [(p, *two) for p in PHOTOGRAPHS for two in itertools.combinations(sorted(every), 2)]
    assert list(key["pairs"]) == [f"{n:04}" for n in range(1, 31)]


def test_against_one_method(pictures):
    pairs = prepare("votes", "--against", "quokka")["pairs"].values()
    assert len(pairs) == 3 * len(PHOTOGRAPHS)
    assert all("quokka" in (pair["left"], pair["right"]) for pair in pairs)


def test_order_is_random_and_left_and_right_are_balanced(pictures):
    keys = [prepare(f"votes{seed}", "--seed", seed)["pairs"].values() for seed in range(4)]
    for two in itertools.combinations([*METHODS, "untouched photograph"], 2):
        for key in keys:
            lefts = [pair["left"] for pair in key if {pair["left"], pair["right"]} == set(two)]
            assert sorted(lefts.count(method) for method in two) == [2, 3]
    names = [[pair["photograph"] for pair in key] for key in keys]
    assert all(a != b for a, b in itertools.combinations(names, 2))
    assert all(order != sorted(order) for order in names)


def test_one_seed_gives_the_same_bytes_in_whatever_order_methods_are_named(pictures):
    prepare("one", "--seed", "3")
    prepare("two", "--seed", "3", methods=METHODS[::-1])
    assert contents("one") == contents("two")


def test_nothing_that_a_viewer_gets_names_a_method(pictures):
    prepare("votes")
    files = contents("votes/viewer")
    assert set(files) == {"index.html", "pairs.json", *(f"{n:04}.png" for n in range(1, 31))}
    names = [name.encode() for name in (*METHODS, *PHOTOGRAPHS, "gogh", "untouched")]
    for name, content in files.items():
        assert not [word for word in names if word in content.lower() + name.encode()], name
        if name.endswith(".png"):
            assert chunks(content) == {b"IHDR", b"IDAT", b"IEND"}


def test_a_sheet_holds_both_pictures_pixel_for_pixel_where_the_key_says(pictures):
    key = prepare("votes", methods=["zebu", "quokka"])
    for name, pair in key["pairs"].items():
        sheet = np.asarray(Image.open(f"votes/viewer/{name}.png"))
        for side, x in (("left", 12), ("right", 160 + 24)):
            if pair[side] != "untouched photograph":
                picture = np.asarray(Image.open(Path(pair[side], pair["photograph"] + ".png")))
                assert (sheet[36 : 36 + 120, x : x + 160] == picture).all()
            else:  # cut from 240×160 to 4:3, then scaled
                photograph = Image.open(pair["photograph"] + ".png")
                wanted = photograph.resize(SIZE, Image.Resampling.LANCZOS, box=(240 / 2 - 107, 0, 240 / 2 + 107, 160))
                shown = sheet[36 : 36 + 120, x : x + 160].astype(float)
                assert np.corrcoef(shown.ravel(), np.asarray(wanted).ravel())[0, 1] > 0.95


def test_scenes_of_a_json_with_two_paintings(pictures):
    noise(99, (50, 50)).save("munch.png")
    scenes = [
        {"photograph": f"{p}.png", "painting": painting, "pictures": {m: f"{m}/{p}.png" for m in METHODS}}
        for p, painting in itertools.product(PHOTOGRAPHS, ["gogh.png", "munch.png"])
    ]
    Path("scenes.json").write_text(json.dumps(scenes))
    command("prepare", "scenes.json", "--against", "zebu", "--output", "votes")
    key = json.loads(Path("votes/key.json").read_text())
    assert key["paintings"] == ["gogh", "munch"]
    assert key["photographs"] == PHOTOGRAPHS
    assert len(key["pairs"]) == 3 * 2 * len(PHOTOGRAPHS)


class Page(HTMLParser):
    """What matters of a page: tags with their attributes, in order, and its script."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.script = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.tags and self.tags[-1][0] == "script":
            self.script += text

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_the_page_holds_the_pairs_and_asks_nothing_of_the_network(pictures):
    prepare("votes")
    text = Path("votes/viewer/index.html").read_text()
    page, pairs = Page(text), json.loads(Path("votes/viewer/pairs.json").read_text())
    assert json.loads(re.search(r"const votes = (.*);", page.script)[1]) == pairs
    assert all(Path("votes/viewer", sheet).is_file() for sheet in pairs["pairs"].values())
    assert not re.search(r"https?:|//[a-z]|fetch\(|import |XMLHttp", text)
    assert not [tag for tag, attributes in page.tags if tag in ("link", "script") and attributes]
    assert [one["id"] for one in page.all("fieldset")] == QUESTIONS
    assert len(page.all("legend")) == len(QUESTIONS)
    radios = [one for one in page.all("input") if one.get("type") == "radio"]
    assert [(r["name"], r["value"]) for r in radios] == [*itertools.product(QUESTIONS, ["left", "tie", "right"])]
    assert len(page.all("label")) == len(radios) + 1  # around each, and the viewer's
    assert {"for": "viewer"} in page.all("label")
    assert page.all("html")[0]["lang"] == "en"


BROWSER = """
const elements = {}, saved = {}, fs = require("fs");
const element = (id) => elements[id] ??= {id, focus() {}, querySelectorAll: () => QUESTIONS.map((id) => element(id))};
const form = element("form");
form.elements = Object.fromEntries(QUESTIONS.map((name) => [name, {value: ""}]));
form.reset = () => QUESTIONS.forEach((name) => { form.elements[name].value = ""; });
form.requestSubmit = () => form.onsubmit({preventDefault() {}});
const body = {}, storage = {};
globalThis.localStorage = {getItem: (key) => storage[key] ?? null, setItem: (key, text) => { storage[key] = text; }};
globalThis.document = {body, getElementById: element, createElement: () => ({click() { saved.name = this.download; }})};
globalThis.Blob = class { constructor(parts) { saved.text = parts.join(""); } };
URL.createObjectURL = () => "blob:";
const run = () => new Function(SCRIPT)(), press = (key) => document.onkeydown({key, target: body});
run();
const states = [];
for (const key of KEYS) key === "reload" ? run() : press(key), states.push(element("sheet").src);
elements.viewer.value = "v1", elements.viewer.oninput(), elements.save.onclick();
console.log(JSON.stringify({states, saved, said: elements.said.textContent}));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="node is not installed")
def test_the_page_saves_what_the_keys_say_and_count_reads_it(pictures):
    """The page's script in node, with only as much of a browser as it asks for."""
    key = prepare("votes", "--against", "zebu", methods=["zebu"])
    script = Page(Path("votes/viewer/index.html").read_text()).script
    answers = [list(keys) for keys in ("ltr", "rrl", "tlt", "llr", "rtr")]
    keys = [*answers[0], "Enter", *answers[1][:2], "x", "b", "reload", *answers[1][2:], "Enter"]
    keys += [k for keys in answers[2:] for k in [*keys, "Enter"]]
    given = f"const QUESTIONS = {json.dumps(QUESTIONS)}, KEYS = {json.dumps(keys)}, SCRIPT = {json.dumps(script)};"
    done = subprocess.run(["node", "-e", given + BROWSER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    at = [int(sheet[:4]) for sheet in found["states"]]
    assert at[:10] == [1, 1, 1, 2, 2, 2, 2, 1, 2, 2]  # back by b; at the first that is not answered after a reload
    assert at[-1] == 5
    assert found["said"].startswith("Saved. Thank you")
    saved = json.loads(found["saved"]["text"])
    words = {"l": "left", "t": "tie", "r": "right"}
    assert saved["set"] == key["set"]
    assert saved["answers"] == {
        pair: {question: words[k] for question, k in zip(QUESTIONS, keys, strict=True)}
        for pair, keys in zip(key["pairs"], answers, strict=True)
    }
    Path("answers.json").write_text(found["saved"]["text"])
    command("count", "votes/key.json", "answers.json", "--output", "report.json")
    assert json.loads(Path("report.json").read_text())["voters"] == "1 automatic viewers, not people"


# Counted by hand


def by_hand(tmp_path):
    """Two photographs, two methods and the untouched photograph, two viewers; only *overall* differs between pairs."""
    pairs = {
        "0001": {"photograph": "p", "painting": "g", "left": "ours", "right": "peer"},
        "0002": {"photograph": "q", "painting": "g", "left": "peer", "right": "ours"},
        "0003": {"photograph": "p", "painting": "g", "left": "ours", "right": "untouched photograph"},
        "0004": {"photograph": "q", "painting": "g", "left": "untouched photograph", "right": "ours"},
    }
    key = {"set": "s", "seed": 0, "against": "ours", "methods": ["ours", "peer", "untouched photograph"]}
    key |= {"photographs": ["p", "q"], "paintings": ["g"], "pairs": pairs}
    (tmp_path / "key.json").write_text(json.dumps(key))
    for viewer, overall in (("a", "left left left right"), ("b", "tie right left right")):
        said = {
            pair: {"overall": answer, "style": "tie", "content": "left"}
            for pair, answer in zip(pairs, overall.split(), strict=True)
        }
        (tmp_path / f"{viewer}.json").write_text(json.dumps({"viewer": viewer, "answers": said}))
    return [tmp_path / name for name in ("key.json", "a.json", "b.json")]


def test_counting_by_hand(tmp_path, capsys):
    command("count", *by_hand(tmp_path), "--output", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    overall = report["questions"]["overall"]
    # Against the peer: 1 and ½ of 2 on p, 0 and 1 of 2 on q. Two photographs drawn of two: both p, both q, or each.
    peer = {"percent": 62.5, "interval": [50.0, 75.0], "above 50 %": False}
    untouched = {"percent": 100.0, "interval": [100.0, 100.0], "above 50 %": True}
    assert overall["pairs"] == {"ours against peer": peer, "ours against untouched photograph": untouched}
    assert overall["answers"] == {"left": 4, "tie": 1, "right": 3}
    # Of a star, scores are as the points: ours to peer 3½ to 2½ with one win each way beforehand, to untouched 5 to 1.
    parts = np.array([1, 2.5 / 3.5, 1 / 5])
    assert [one["score"] for one in overall["ranking"].values()] == pytest.approx(parts / parts.sum(), abs=1e-4)
    assert list(overall["ranking"]) == ["ours", "peer", "untouched photograph"]
    style = report["questions"]["style"]
    assert {one["percent"] for one in style["pairs"].values()} == {50.0}
    assert {one["score"] for one in style["ranking"].values()} == {0.3333}
    content = report["questions"]["content"]["pairs"]["ours against peer"]
    assert content == {"percent": 50.0, "interval": [0.0, 100.0], "above 50 %": False}
    assert report["voters"] == "2 automatic viewers, not people"
    assert (report["methods"], report["photographs"]) == (["ours", "peer", "untouched photograph"], ["p", "q"])
    printed = capsys.readouterr().out
    assert "| ours against peer | 62 (50 to 75) | 50 (50 to 50) | 50 (0 to 100) |" in printed
    assert "| ours against untouched photograph | 100 (100 to 100), above 50 % | 50" in printed


def test_intervals_are_those_of_a_bootstrap_by_hand():
    points = np.zeros((18, 2, 2))
    points[:, 0, 1] = np.random.default_rng(1).integers(0, 7, 18) / 2
    points[:, 1, 0] = 3 - points[:, 0, 1]
    generator = np.random.default_rng(2)
    shares = [100 * points[generator.integers(0, 18, 18), 0, 1].sum() / 54 for _ in range(20_000)]
    found = votes.count_votes(points, ["a", "b"], None, 0)["pairs"]["a against b"]
    assert found["percent"] == pytest.approx(100 * points[:, 0, 1].sum() / 54, abs=0.05)
    assert found["interval"] == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=1.0)  # steps are 0.9


# Rank Centrality


def walk(points, prior):
    """The paper's chain by a hand loop: a step at a time until nothing changes."""
    n = len(points)
    compared = [[i != j and points[i][j] + points[j][i] > 0 for j in range(n)] for i in range(n)]
    most = max(sum(row) for row in compared)
    chain = np.zeros((n, n))
    for i, j in itertools.product(range(n), range(n)):
        if compared[i][j]:
            chain[i, j] = (points[j][i] + prior) / (points[i][j] + points[j][i] + 2 * prior) / most
    for i in range(n):
        chain[i, i] = 1 - sum(chain[i, j] for j in range(n) if j != i)
    at = np.full(n, 1 / n)
    for _ in range(20_000):
        at = at @ chain
    return at


@pytest.mark.parametrize("prior", [0.5, 1.0])
@pytest.mark.parametrize("missing", [[], [(0, 3), (1, 4)], [(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)]])
def test_rank_centrality_is_where_a_walker_ends_up(prior, missing):
    points = np.random.default_rng(len(missing)).integers(0, 20, (5, 5)) / 2
    np.fill_diagonal(points, 0)
    for i, j in missing:
        points[i, j] = points[j, i] = 0
    scores = votes.rank_centrality(np.stack([points, points.T]), prior)
    assert scores[0] == pytest.approx(walk(points, prior), abs=1e-10)
    assert scores[1] == pytest.approx(walk(points.T, prior), abs=1e-10)
    assert scores.sum(-1) == pytest.approx([1, 1])


def test_scores_of_bradley_and_terry_are_found_exactly_from_their_shares():
    worth = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    shares = worth[:, None] / (worth[:, None] + worth)
    np.fill_diagonal(shares, 0)
    assert votes.rank_centrality(shares, prior=0) == pytest.approx(worth, abs=1e-12)


def test_scores_of_bradley_and_terry_are_found_from_simulated_votes():
    worth = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    generator, points = np.random.default_rng(5), np.zeros((5, 5))
    for i, j in itertools.combinations(range(5), 2):
        points[i, j] = sum(generator.random() < worth[i] / (worth[i] + worth[j]) for _ in range(4000))
        points[j, i] = 4000 - points[i, j]
    assert votes.rank_centrality(points) == pytest.approx(worth, abs=0.01)


def test_who_always_loses_has_a_score_and_islands_have_no_ranking():
    assert votes.rank_centrality(np.array([[0, 9], [0, 0]])) == pytest.approx([10 / 11, 1 / 11])
    islands = np.zeros((4, 4))
    islands[0, 1] = islands[2, 3] = 5
    with pytest.raises(votes.UserError, match="never compared"):
        votes.rank_centrality(islands)


# Errors are one line


def refused(*arguments):
    with pytest.raises(SystemExit) as end:
        command(*arguments)
    assert isinstance(end.value.code, str)  # which Python prints to stderr before it leaves with 1
    assert "\n" not in end.value.code
    return end.value.code


def test_what_prepare_refuses_writes_nothing(pictures):
    files = ["harbour.png", "meadow.png"]
    given = ("--photographs", *files, "--painting", "gogh.png", "--output", "votes")
    Path("narwhal/meadow.png").unlink()
    assert "narwhal has no picture of meadow" in refused("prepare", *METHODS, *given)
    assert "--against emu is none of the methods" in refused("prepare", "zebu", *given, "--against", "emu")
    noise(7, (120, 160)).save("quokka/meadow.png")
    assert "quokka 120×160, zebu 160×120" in refused("prepare", "zebu", "quokka", *given)
    assert "two or more" in refused("prepare", "zebu", "--photographs", files[0], *given[3:])
    assert "twice" in refused("prepare", "zebu", *given, "--photographs", *files, files[0])
    assert "one name" in refused("prepare", "zebu", "./zebu", *given)
    assert "no picture at absent.png" in refused("prepare", "zebu", *given, "--painting", "absent.png")
    assert "need --photographs" in refused("prepare", "zebu", "--output", "votes")
    Path("zebu").rename("untouched photograph")
    assert "none called 'untouched photograph'" in refused("prepare", "untouched photograph", *given)
    for text in ("{}", "[1]", '[{"photograph": "harbour.png"}]', "nothing"):
        Path("scenes.json").write_text(text)
        assert "scenes.json" in refused("prepare", "scenes.json", "--output", "votes") or text == "{}"
    assert not Path("votes").exists()


def test_votes_are_never_replaced(pictures):
    prepare("votes")
    before = contents("votes")
    given = ("--photographs", "harbour.png", "meadow.png", "--painting", "gogh.png", "--output", "votes")
    assert "never replaced" in refused("prepare", "zebu", *given)
    assert contents("votes") == before
    Path("report.json").write_text("kept")
    assert "never replaced" in refused("count", *by_hand(pictures), "--output", "report.json")
    assert Path("report.json").read_text() == "kept"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: a.pop("viewer"), "holds no viewer's answers"),
        (lambda a: a.update(answers=[]), "holds no viewer's answers"),
        (lambda a: a.update(set="other"), "answers set other, the key is of set s"),
        (lambda a: a["answers"].update({"0009": {}}), "answers pair 0009, which the key does not have"),
        (lambda a: a["answers"].pop("0003"), "says nothing to overall of pair 0003; needed: one of left, tie, right"),
        (lambda a: a["answers"]["0002"].pop("style"), "says nothing to style of pair 0002"),
        (lambda a: a["answers"]["0002"].update(content="Left"), "says 'Left' to content of pair 0002"),
        (lambda a: a["answers"]["0002"].update(content=["left"]), r"says \['left'\] to content of pair 0002"),
        (lambda a: a["answers"].update({"0001": "left"}), "says nothing to overall of pair 0001"),
        (lambda a: a.update(viewer="a"), "is a second file of viewer a"),
    ],
)
def test_malformed_answers_are_one_line(tmp_path, change, said):
    files = by_hand(tmp_path)
    answers = json.loads(files[2].read_text())
    change(answers)
    files[2].write_text(json.dumps(answers))
    line = refused("count", *files, "--output", tmp_path / "report.json")
    assert re.search(rf"b\.json {said}", line), line
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize("text", ["", "nothing", "[1, 2", "\0", "[" * 100_000, '"left"', "null", "[]"])
def test_files_that_are_no_answers_or_no_key_are_one_line(tmp_path, text):
    files = by_hand(tmp_path)
    broken = tmp_path / "broken.json"
    broken.write_text(text)
    assert "broken.json" in refused("count", files[0], broken, "--output", tmp_path / "report.json")
    assert "broken.json" in refused("count", broken, files[1], "--output", tmp_path / "report.json")
    assert "absent.json" in refused("count", files[0], tmp_path / "absent.json", "--output", tmp_path / "report.json")
