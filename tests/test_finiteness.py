"""No maximum, minimum or norm decides anything before it was asked whether all numbers are finite: read from the source
itself.

On a CPU XLA's max and min of float32 drop NaN where they go over 4,096 numbers or more (JAX 0.10), so that a comparison
of one is true of what holds NaN. `ops.extremes` has those that do not; NumPy's keep NaN. Values are followed by name
through assignments, returns and fields of one module.
"""

import ast
import pathlib
import textwrap
from collections.abc import Iterator

import pytest

from test_architecture import PACKAGE, Function, name, parse

EXTREMES = {"max", "min", "amax", "amin", "cummax", "cummin", "reduce_max", "reduce_min", "norm", "global_norm"}
ASKED = {"isfinite", "isnan", "all_finite", "largest", "smallest"}
NUMPY = {"np"}
CHOICES = {"where", "cond", "select", "while_loop", "bool"}  # of their first argument
# Functions in which an extreme decides where no NaN can be, and why.
EXCEPTIONS = {
    "selssm_jax/generation.py:_rows": "tokens, whole numbers",
    "selssm_jax/information/discrete.py:of_labels": "labels and their counts, in NumPy",
    "selssm_jax/information/neighbours.py:_mixture_terms": "distances of samples that `inputs` found finite; of k "
    "neighbours each",
    "selssm_jax/layers/output_heads.py:_last": "numbers of steps",
    "selssm_jax/predict.py:_clips": "numbers of samples",
    "selssm_jax/predict.py:_tokens": "tokens, whole numbers",
    "selssm_jax/predict.py:states": "numbers of axes",
    "selssm_jax/training/cluster.py:check_same": "bytes of digests, in NumPy",
    "selssm_jax/training/optimizer.py:_clip": "a sum of squares, which keeps NaN and passes it on",
    "selssm_jax/training/optimizer.py:update": "that of _clip",
}


def leftmost(node: ast.AST) -> str:
    """np of np.abs(x - y).max()."""
    while not isinstance(node, ast.Name):
        match node:
            case (
                ast.Call(func=inner)
                | ast.Attribute(value=inner)
                | ast.Subscript(value=inner)
                | ast.UnaryOp(operand=inner)
                | ast.BinOp(left=inner)
            ):
                node = inner
            case _:
                return ""
    return node.id


def called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


class Flow:
    """Which names, functions and fields of the package hold extremes of JAX's arrays."""

    def __init__(self, modules: dict[pathlib.Path, ast.Module]) -> None:
        self.functions = [
            (path, node) for path, tree in modules.items() for node in ast.walk(tree) if isinstance(node, Function)
        ]
        self.fields = {
            node.name: [
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            ]
            for tree in modules.values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        self.returning: set[str] = set()
        self.held: set[tuple[str, str]] = set()
        while self._grow():
            pass

    def _grow(self) -> bool:
        before = len(self.returning) + len(self.held)
        for _, function in self.functions:
            if asks(function):
                continue
            local = self.names(function)
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None and self.holds(node.value, local):
                    self.returning.add(function.name)
                if isinstance(node, ast.Call) and called(node) in self.fields:
                    fields = self.fields[called(node)]
                    given = [*zip(fields, node.args, strict=False), *((word.arg, word.value) for word in node.keywords)]
                    self.held |= {(called(node), field) for field, value in given if self.holds(value, local)}
        return len(self.returning) + len(self.held) > before

    def names(self, function: Function) -> set[str]:
        """Local names that hold an extreme."""
        self.in_numpy = {
            target for node in ast.walk(function) for target, value in assigned(node) if leftmost(value) in NUMPY
        }
        local: set[str] = set()
        while True:
            new = {
                target for node in ast.walk(function) for target, value in assigned(node) if self.holds(value, local)
            } - local
            if not new:
                return local
            local |= new

    def holds(self, value: ast.AST, local: set[str]) -> bool:
        """Whether a value is made of an extreme; a comparison is a truth and no extreme."""
        fields = {field for _, field in self.held}
        for node in own(value):
            if isinstance(node, ast.Call) and (
                is_extreme(node, NUMPY | self.in_numpy) or called(node) in self.returning
            ):
                return True
            if (isinstance(node, ast.Name) and node.id in local) or (
                isinstance(node, ast.Attribute) and node.attr in fields
            ):
                return True
        return False

    def deciding(self) -> Iterator[str]:
        """file:function of every decision by an extreme in a function that does not ask for NaN."""
        for path, function in self.functions:
            if asks(function):
                continue
            local = self.names(function)
            if any(self.holds(side, local) for node in ast.walk(function) for side in sides(node)):
                yield f"{name(path)}:{function.name}"


def own(value: ast.AST) -> Iterator[ast.AST]:
    """The parts of an expression whose size it has: not what it compares, tests, or takes the shape or type of."""
    yield value
    if (
        isinstance(value, ast.Compare | ast.Lambda)
        or (isinstance(value, ast.Attribute) and value.attr in ("shape", "size", "dtype", "ndim"))
        or (isinstance(value, ast.Call) and called(value) == "isinstance")
    ):
        return
    for child in ast.iter_child_nodes(value):
        yield from own(child)


def is_extreme(node: ast.Call, in_numpy: set[str]) -> bool:
    return isinstance(node.func, ast.Attribute) and node.func.attr in EXTREMES and leftmost(node.func) not in in_numpy


def asks(function: Function) -> bool:
    return any(isinstance(node, ast.Call) and called(node) in ASKED for node in ast.walk(function))


def assigned(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr) and node.value is not None:
        targets = [node.target]
    for target in targets:
        if (
            isinstance(target, ast.Tuple)
            and isinstance(node.value, ast.Tuple)
            and len(target.elts) == len(node.value.elts)
        ):
            yield from (
                (part.id, value)
                for part, value in zip(target.elts, node.value.elts, strict=True)
                if isinstance(part, ast.Name)
            )
        else:
            yield from ((part.id, node.value) for part in ast.walk(target) if isinstance(part, ast.Name))


def sides(node: ast.AST) -> Iterator[ast.AST]:
    """What a node decides by."""
    if isinstance(node, ast.Compare):
        by_size = not all(isinstance(operator, ast.In | ast.NotIn | ast.Is | ast.IsNot) for operator in node.ops)
        both = (node.left, *node.comparators) if by_size else ()
        yield from (
            () if any(isinstance(side, ast.Constant) and isinstance(side.value, str | None) for side in both) else both
        )
    elif isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
        yield node.test
    elif isinstance(node, ast.Call) and called(node) in CHOICES and node.args:
        yield node.args[0]


def of_jax(tree: ast.Module) -> bool:
    names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return "jax" in {dotted.split(".")[0] for dotted in names}


def test_no_extreme_decides_that_was_not_asked_for_nan():
    modules = {path: parse(path) for path in PACKAGE}
    deciding = {one for path, tree in modules.items() if of_jax(tree) for one in Flow({path: tree}).deciding()}
    assert deciding - set(EXCEPTIONS) == set(), (
        "use ops.extremes, ask isfinite(...).all(), or compare each number and take all() of that"
    )
    assert set(EXCEPTIONS) - deciding == set(), "an exception that nothing needs any more"


@pytest.mark.parametrize(
    ("body", "decides"),
    [
        ("return x.max() < 1", True),
        ("e = jnp.abs(x).max()\nr = e / 2\nreturn jnp.where(r < 1, x, 0)", True),
        ("return lax.cond(jnp.linalg.norm(x) < 1, f, g)", True),
        ("if float(jnp.max(x)) > 1:\n    raise ValueError", True),
        ("e, n = size(x), 0\nreturn e < 1", True),
        ("s = State(x, lax.cummax(x))\nreturn s.top <= 1", True),
        ("return jnp.isfinite(x).all() & (x.max() < 1)", False),
        ("return largest(x) < 1", False),
        ("return x / x.max()", False),
        ("return np.abs(x).max() < 1", False),
        ("x = np.asarray(x)\nreturn x.max() < 1", False),
        ("return (x < 1).all()", False),
    ],
)
def test_what_decides_is_seen(body, decides):
    source = (
        "class State:\n    h: int\n    top: int\ndef size(x):\n    return optax.global_norm(x)\ndef f(x):\n"
        + textwrap.indent(body, "    ")
    )
    assert bool([*Flow({PACKAGE[0]: ast.parse(source)}).deciding()]) == decides
