"""What the library must not do, read from its syntax trees: print, unpickle. `lint-imports` holds who imports whom."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "nst_fast").rglob("*.py"))
EVERYWHERE = sorted(
    p for folder in ("nst_fast", "scripts", "benchmarks", "tests") for p in (ROOT / folder).rglob("*.py")
)


def calls(path: Path, *names: str) -> list[ast.Call]:
    """Every call in a file to one of these dotted names."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) in names]


def test_only_commands_print():
    library = [path for path in FILES if "commands" not in path.parts]
    assert len(library) >= 10
    assert [path for path in library if calls(path, "print")] == []


def test_every_torch_load_refuses_pickled_code():
    found = [(path, call) for path in EVERYWHERE for call in calls(path, "torch.load", "torch.serialization.load")]
    assert {path.name for path, _ in found if path in FILES} == {"weights.py"}
    for path, call in found:
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("weights_only") == "True", f"{path}, line {call.lineno}"


def test_torch_load_is_never_renamed():
    for path in EVERYWHERE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "torch.serialization"):
                assert "load" not in {alias.name for alias in node.names}, path
            if isinstance(node, ast.Import):
                assert all(alias.asname is None for alias in node.names if alias.name == "torch"), path


UNSAFE = {
    *("eval", "exec", "compile", "__import__", "os.system", "pickle.load", "pickle.loads", "marshal.loads"),
    *("hydra.utils.instantiate", "instantiate", "hydra.utils.call", "get_class", "importlib.import_module"),
    *("yaml.load", "yaml.unsafe_load", "yaml.full_load", "onnx.load", "onnx.load_model", "OmegaConf.register_resolver"),
    *("np.load", "numpy.load", "joblib.load", "torch.jit.load", "torch.hub.load", "OmegaConf.register_new_resolver"),
}


def test_nothing_in_the_package_makes_classes_or_runs_code_that_a_file_names():
    assert [(path, ast.unparse(call)) for path in FILES for call in calls(path, *UNSAFE)] == []


def test_files_of_tensors_are_opened_in_one_place():
    for name in ("safe_open", "load_file", "zipfile.is_zipfile"):
        assert {path.name for path in FILES if calls(path, name)} <= {"weights.py"}
