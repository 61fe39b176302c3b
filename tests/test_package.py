"""The rules that keep the package small and its parts apart, each shown to find a seeded violation."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("worldenv", "csrc", "kernels", "tests", "benchmarks", "examples")
CXX = (".cpp", ".h", ".cu")
SUFFIXES = (".py", *CXX)
LINES_PER_FILE = 400
LINES_PER_FUNCTION = 60
COLUMNS = 120
NOT_OPS = {"__init__", "constants", "packed"}  # what several ops need
FORBIDDEN_NAMES = {"utils", "helpers", "common", "core", "base"}

# Imports point down. Any other top-level module is a leaf: all may import it, and it imports leaves only.
LAYERS = (
    {"__main__"},
    {"commands"},
    {"assemble"},
    {"released_models"},
    {"config"},
    {"training"},
    {"rl", "evaluation"},
    {"envs"},
    {"rollout"},
    {"policy", "worlds", "reflector", "suites"},
    {"data"},
    {"nn"},
    {"records"},
    {"interfaces"},
    {"robot"},
    {"ops"},
    {"kernels", "_C", "_cuda", "_tabletop"},
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
LEAF_LEVEL = len(LAYERS)
SIBLING_LEVEL = LEVEL["policy"]  # these meet in rollout and training, and never import each other
PARTS = {"policy", "worlds", "reflector", "suites"}
# All others know the interfaces, and no class behind them.
KNOW_PARTS = PARTS | {"assemble", "released_models", "training"}
DOORS = {"_C": {"ops"}, "_cuda": {"ops"}, "kernels": {"ops", "commands"}, "_tabletop": {"suites"}}


def source_files(root, suffixes=SUFFIXES):
    return [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.suffix in suffixes]


def long_files(root):
    return [
        f"{path.relative_to(root)}: {lines} lines"
        for path in source_files(root)
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > LINES_PER_FILE
    ]


# Comments, literals and preprocessor lines of C++: what may hold a brace that is none.
NO_CODE = re.compile(
    r"""//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'|^[ \t]*\#(?:\\\n|[^\n])*""",
    re.DOTALL | re.MULTILINE,
)
SCOPE = re.compile(r"\b(namespace|struct|class|union)\b[^()]*$")


def cxx_functions(text):
    """First and last line of every function, by counting braces: of every outermost block that is no scope."""
    code = NO_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    head, depth = 0, 0  # where the declaration begins that we are in; depth in its body
    for match in re.finditer("[;{}]", code):
        place = match.start()
        if depth or (match[0] == "{" and not SCOPE.search(code[head:place])):
            depth += {"{": 1, "}": -1, ";": 0}[match[0]]
            if depth:
                continue
            first = place - len(code[head:place].lstrip())
            yield code.count("\n", 0, first) + 1, code.count("\n", 0, place) + 1
        head = place + 1
    assert depth == 0, "braces do not match"


def long_cxx_functions(root):
    return [
        f"{path.relative_to(root)}:{first}: a function of {lines} lines"
        for path in source_files(root, CXX)
        for first, last in cxx_functions(path.read_text(encoding="utf-8"))
        if (lines := last - first + 1) > LINES_PER_FUNCTION
    ]


def wide_cxx_lines(root):  # ruff looks at the lines of Python
    return [
        f"{path.relative_to(root)}:{number}: {len(line)} columns"
        for path in source_files(root, CXX)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if len(line) > COLUMNS
    ]


def long_functions(root):
    return [
        f"{path.relative_to(root)}: {node.name} has {lines} lines"
        for path in source_files(root, (".py",))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := node.end_lineno - node.lineno + 1) > LINES_PER_FUNCTION
    ]


def forbidden_names(root):
    return [
        str(path.relative_to(root))
        for path in source_files(root)
        if FORBIDDEN_NAMES & {part.lower() for part in path.relative_to(root).with_suffix("").parts}
    ]


def imported_modules(path, root):
    """Every module of worldenv that the file imports, by its name below worldenv; "" is worldenv itself."""
    package = path.relative_to(root).parent.parts  # of the module, or of the package whose __init__ it is
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "worldenv" else [module]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "worldenv":
                yield name.partition(".")[2]


def is_module(name, root):
    return name in LEVEL or (root / "worldenv" / f"{name}.py").exists() or (root / "worldenv" / name).is_dir()


def import_is_allowed(importer, imported):
    if importer == imported:
        return True
    if importer not in DOORS.get(imported, {importer}):
        return False
    upper, lower = LEVEL.get(importer, LEAF_LEVEL), LEVEL.get(imported, LEAF_LEVEL)
    return upper < lower or (upper == lower and upper != SIBLING_LEVEL)


def imports(root):
    """File, its folder or module below worldenv, and what it imports of worldenv."""
    for path in sorted((root / "worldenv").rglob("*.py")) + sorted((root / "kernels").rglob("*.py")):
        relative = path.relative_to(root)
        importer = "kernels" if relative.parts[0] == "kernels" else relative.with_suffix("").parts[1]
        for module in imported_modules(path, root):
            imported = module.split(".")[0]
            if imported and is_module(imported, root):
                yield relative, importer, imported


def upward_imports(root):
    return [f"{file} imports {new}" for file, importer, new in imports(root) if not import_is_allowed(importer, new)]


def imports_past_the_interfaces(root):
    return [
        f"{file} imports {imported}"
        for file, importer, imported in imports(root)
        if imported in PARTS and importer not in KNOW_PARTS
    ]


def incomplete_packages(root):
    """Folders with Python files that the wheel would leave out, and the one folder that must not be a package."""
    folders = {path.parent for path in (root / "worldenv").rglob("*.py")}
    found = [f"{f.relative_to(root)} lacks __init__.py" for f in sorted(folders) if not (f / "__init__.py").exists()]
    return found + [f"{path.relative_to(root)} should not exist" for path in (root / "kernels").glob("__init__.py")]


def incomplete_ops(root):
    stems = {path.stem for path in (root / "worldenv/ops").glob("*.py")} - NOT_OPS
    faces = [*root.glob("csrc/cpu/*.cpp"), *root.glob("csrc/cuda/*.cu"), *root.glob("kernels/triton_ops/*.py")]
    found = [
        f"{path.relative_to(root)} has no worldenv/ops/{path.stem}.py"
        for path in faces
        if path.stem not in stems | {"__init__"}
    ]
    for stem in sorted(stems):
        tree = ast.parse((root / f"worldenv/ops/{stem}.py").read_text(encoding="utf-8"))
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        found += [f"op {stem} has no function {name}" for name in (stem, f"{stem}_reference") if name not in functions]
        for file in (f"tests/ops/test_{stem}.py", f"benchmarks/ops/bench_{stem}.py"):
            if not (root / file).exists():
                found.append(f"op {stem} has no {file}")
    return found


RULES = [
    long_files,
    long_functions,
    long_cxx_functions,
    wide_cxx_lines,
    forbidden_names,
    upward_imports,
    imports_past_the_interfaces,
    incomplete_packages,
    incomplete_ops,
]


@pytest.mark.parametrize("rule", RULES)
def test_package_keeps_the_rule(rule):
    assert rule(ROOT) == []


def test_rules_see_the_whole_package():
    files = {str(path.relative_to(ROOT)) for path in source_files(ROOT)}
    assert {"worldenv/robot/camera.py", "csrc/cpu/action_map.cpp", "tests/ops/test_action_map.py"} <= files


def test_rule_sees_every_kind_of_cxx_function():
    functions = dict(cxx_functions(CXX_FILE))
    assert functions == {5: 8, 10: 10, 13: 17, 18: 18, 21: 21}
    seen = {path.name: len(list(cxx_functions(path.read_text(encoding="utf-8")))) for path in source_files(ROOT, CXX)}
    assert seen["adaln.cpp"] > 5 and seen["windowed_attention_sm90.h"] > 5 and seen["physics.cpp"] > 5


CXX_FILE = """// { is no brace here
#define BEGIN {
namespace worldenv {

template <class T>
void f(const char* s = "}") {
  if (s) { g('{'); }
}
enum class Kind;
const int table[2] = {1, 2};
struct Pair {
  int first;
  Pair(int first)  /* } */
      : first(first)
  {
    for (;;) { break; }
  }
  int second() const { return 2; }
};
}  // namespace worldenv
LIBRARY(worldenv, m) { m.def("f"); }
"""
FUNCTION = "def long():\n" + "    x = 1\n" * LINES_PER_FUNCTION
BODY = "void f() {\n" + "  g();\n" * (LINES_PER_FUNCTION - 1) + "}\n"


@pytest.mark.parametrize(
    ("rule", "file", "text", "message"),
    [
        (long_files, "csrc/tabletop/world.h", "\n" * 401, "csrc/tabletop/world.h: 401 lines"),
        (long_files, "examples/run.py", "\n" * 401, "examples/run.py: 401 lines"),
        (long_functions, "tests/test_x.py", FUNCTION, "tests/test_x.py: long has 61 lines"),
        (
            long_functions,
            "worldenv/a.py",
            "class A:\n" + "".join(f"    {line}\n" for line in FUNCTION.splitlines()),
            "worldenv/a.py: long has 61 lines",
        ),
        (long_cxx_functions, "csrc/cpu/x.cpp", "\n" + BODY, "csrc/cpu/x.cpp:2: a function of 61 lines"),
        (
            long_cxx_functions,
            "csrc/cuda/x.cu",
            "namespace a {\nstruct B {\n" + BODY + "};\n}\n",
            "csrc/cuda/x.cu:3: a function of 61 lines",
        ),
        (wide_cxx_lines, "csrc/cpu/x.h", "\n//" + "-" * 119, "csrc/cpu/x.h:2: 121 columns"),
        (forbidden_names, "worldenv/policy/utils.py", "", "worldenv/policy/utils.py"),
        (forbidden_names, "csrc/common/isa.h", "", "csrc/common/isa.h"),
        (upward_imports, "worldenv/policy/vla.py", "import worldenv.rollout.engine", "imports rollout"),
        (upward_imports, "worldenv/policy/vla.py", "from worldenv import worlds", "imports worlds"),
        (upward_imports, "worldenv/policy/vla.py", "from ..training.fit import fit", "imports training"),
        (upward_imports, "worldenv/policy/__init__.py", "from .. import suites", "imports suites"),
        (
            upward_imports,
            "worldenv/policy/vla.py",
            "def f():\n    from worldenv import ops, commands",
            "imports commands",
        ),
        (upward_imports, "worldenv/interfaces/world.py", "import worldenv.worlds.levels", "imports worlds"),
        (imports_past_the_interfaces, "worldenv/rollout/engine.py", "from worldenv import policy", "imports policy"),
        (imports_past_the_interfaces, "worldenv/rl/loop.py", "import worldenv.worlds.levels", "imports worlds"),
        (imports_past_the_interfaces, "worldenv/commands/job.py", "from ..suites import record", "imports suites"),
        (upward_imports, "worldenv/errors.py", "from worldenv.ops import action_map", "imports ops"),
        (upward_imports, "worldenv/worlds/network.py", "from worldenv import _C", "imports _C"),
        (upward_imports, "kernels/triton_ops/rope.py", "from worldenv.ops import rope", "imports ops"),
        (upward_imports, "worldenv/__init__.py", "from worldenv.commands.cli import train", "imports commands"),
        (incomplete_packages, "worldenv/suites/tabletop.py", "", "worldenv/suites lacks __init__.py"),
        (incomplete_packages, "kernels/__init__.py", "", "kernels/__init__.py should not exist"),
        (incomplete_ops, "worldenv/ops/rope.py", "def rope(): ...", "op rope has no function rope_reference"),
        (incomplete_ops, "worldenv/ops/rope.py", "", "op rope has no tests/ops/test_rope.py"),
        (incomplete_ops, "worldenv/ops/rope.py", "", "op rope has no benchmarks/ops/bench_rope.py"),
        (incomplete_ops, "csrc/cpu/rope.cpp", "", "csrc/cpu/rope.cpp has no worldenv/ops/rope.py"),
        (incomplete_ops, "kernels/triton_ops/rope.py", "", "has no worldenv/ops/rope.py"),
    ],
)
def test_seeded_violation_is_found(tmp_path, rule, file, text, message):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert any(message in violation for violation in rule(tmp_path))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("worldenv/policy/vla.py", "from worldenv.policy import heads\nfrom worldenv.robot.camera import Camera"),
        ("worldenv/rollout/engine.py", "from worldenv import interfaces\nfrom worldenv.ops.rope import rope"),
        ("worldenv/assemble.py", "from worldenv import envs, policy, worlds\nfrom worldenv.suites import record"),
        ("worldenv/training/post.py", "from worldenv.evaluation.truth import act_in_true\nimport worldenv.rollout"),
        ("worldenv/suites/tabletop.py", "from worldenv import _tabletop, __version__"),
        ("worldenv/ops/__init__.py", "from worldenv import _C"),
        ("worldenv/records/video.py", "from ..errors import UserError\nimport torch.utils"),
    ],
)
def test_import_that_points_down_is_no_violation(tmp_path, file, text):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert upward_imports(tmp_path) == [] == imports_past_the_interfaces(tmp_path)
