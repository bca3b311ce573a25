"""The library's structure, read from its syntax trees: imports go one way, nothing prints, nothing unpickles code."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "nst_fast").rglob("*.py"))
EVERYWHERE = sorted(
    p for folder in ("nst_fast", "scripts", "benchmarks", "tests") for p in (ROOT / folder).rglob("*.py")
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path) for path in FILES}


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside its functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES
            found |= submodules or {node.module}
    return found


IMPORTS = {module_name(path): imports(path) for path in FILES}


def importers(package: str) -> set[str]:
    return {name for name, found in IMPORTS.items() if any(f"{i}.".startswith(f"{package}.") for i in found)}


def ours(module: str) -> set[str]:
    return IMPORTS[module] & MODULES


def calls(path: Path, *names: str) -> list[ast.Call]:
    """Every call in a file to one of these dotted names."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [n for n in nodes if isinstance(n, ast.Call) and ast.unparse(n.func) in names]


def test_the_inference_path_imports_nothing_above_it():
    assert ours("nst_fast.errors") == set()
    assert ours("nst_fast.images") == {"nst_fast.errors"}
    assert ours("nst_fast.tiling") == {"nst_fast.errors"}
    assert ours("nst_fast.stylizer") == {"nst_fast.errors", "nst_fast.images", "nst_fast.tiling"}


@pytest.mark.parametrize("package", ["hydra", "omegaconf", "rich", "argparse"])
def test_configuration_and_terminal_packages_stay_in_the_commands(package):
    assert importers(package)
    assert all(name.startswith("nst_fast.commands.") for name in importers(package))


def test_onnxruntime_is_imported_by_the_stylizer_alone():
    assert importers("onnxruntime") == {"nst_fast.stylizer"}


def test_lightning_is_imported_by_data_style_transfer_and_commands_alone():
    library = {name for name in importers("pytorch_lightning") if not name.startswith("nst_fast.commands.")}
    assert library <= {"nst_fast.data", "nst_fast.style_transfer"}
    assert "nst_fast.style_transfer" in library
    assert importers("lightning") == set()


def test_the_library_never_imports_its_commands():
    assert all(name.startswith("nst_fast.commands") for name in importers("nst_fast.commands"))


def test_no_modules_import_each_other_in_a_circle():
    order = list(graphlib.TopologicalSorter({name: ours(name) for name in MODULES}).static_order())
    assert set(order) == MODULES


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
