"""What code must not do, read from syntax trees: print, unpickle, need POSIX. `lint-imports` holds who imports whom."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "nst_fast").rglob("*.py"))
EVERYWHERE = sorted(
    p for folder in ("nst_fast", "scripts", "benchmarks", "examples", "tests") for p in (ROOT / folder).rglob("*.py")
)

POSIX_MODULES = {"fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty"}
POSIX_NAMES = {f"os.{name}" for name in ("fork", "geteuid", "getuid", "killpg", "mkfifo", "nice", "sched_getaffinity")}
POSIX_NAMES |= {f"signal.SIG{name}" for name in ("ALRM", "CHLD", "CONT", "HUP", "KILL", "PIPE", "STOP", "USR1", "USR2")}


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


def imported(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below one that runs when its file is imported: decorators and defaults, but no function's body."""
    for child in ast.iter_child_nodes(node):
        within = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and child in node.body
        if not within and not isinstance(node, ast.Lambda):
            yield child
            yield from imported(child)


def test_every_test_file_can_be_imported_on_windows():
    for path in (ROOT / "tests").glob("*.py"):
        for node in imported(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & POSIX_MODULES, f"{path}, line {node.lineno}"
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in POSIX_NAMES, f"{path}, line {node.lineno}"
