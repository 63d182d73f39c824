"""What a formula may say: formulaic parses it, and nothing is evaluated that is not known here."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

#: of formulaic, each row's value depending on that row and on what the training rows settle;
#: not so lag, which depends on the order of rows, and hashed, which takes levels never seen
FUNCTIONS = (
    "bs", "C", "cc", "center", "cr", "cs", "exp", "exp2", "exp10", "I", "log", "log2", "log10",
    "poly", "scale", "standardize",
)  # fmt: skip
_CONTRASTS = ("Diff", "Helmert", "Poly", "Sum", "Treatment")  # inside C, as well as contr.sum ...

_PLAIN = (
    ast.Expression, ast.Constant, ast.keyword, ast.List, ast.Tuple, ast.Dict, ast.BinOp,
    ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop, ast.expr_context,
)  # fmt: skip


class FormulaError(ValueError):
    """A formula, or a table for it, that cannot be used; nothing was computed."""


class Parsed(NamedTuple):
    """Terms, and the columns that they use in the order of their appearance.

    Attributes
    ----------
    response, experts, gate
        formulaic's `SimpleFormula`: one term, and terms with the intercept among them.
    response_columns, covariates
        Columns of the table: no column is in both.
    categorical
        Those of them that are the argument of C.
    """

    response: Any
    experts: Any
    gate: Any
    response_columns: tuple[str, ...]
    covariates: tuple[str, ...]
    categorical: frozenset[str]


def parse(formula: str, gate: str | None, columns: Sequence[str]) -> Parsed:
    """Parse the formula of response and experts, and that of the gate: the experts' if None.

    Raises
    ------
    FormulaError
        If a formula is malformed, has no response or several, leaves out the intercept, names an
        unknown column or function, or has the response among its covariates.
    """
    both = _parse("formula", formula, columns)
    if not hasattr(both, "lhs"):
        raise FormulaError(
            f"the formula {formula!r} has no response; write it before ~, as in 'y ~ x'"
        )
    response, own = _response(formula, both.lhs, columns), f"the formula {formula!r}"
    covariates = [name for name in columns if name not in response.columns]
    experts, gates = _terms(own, both.rhs), None
    used = _uses(own, experts, columns)
    if gate is not None:
        of_gate = f"the gate's formula {gate!r}"
        gates = _shared(_terms(of_gate, _parse_gate(gate, covariates)), experts)
        used = used.joined(_uses(of_gate, gates, columns))
    for name in response.columns:
        if name in used.columns:
            raise FormulaError(f"{name!r} is the response and a covariate; leave it out after ~")
    if not used.columns:
        raise FormulaError(
            f"{own} has no covariate, nor has the gate's; at least one is needed, as in 'y ~ x'"
        )
    categorical = response.categorical | used.categorical
    return Parsed(
        both.lhs, experts, gates, tuple(response.columns), tuple(used.columns), categorical
    )


# --- formulas


def _parse(which: str, text: Any, columns: Sequence[str]) -> Any:
    """formulaic's parse, ``.`` standing for all columns but the response's."""
    if not isinstance(text, str):
        raise FormulaError(f"the {which} must be a text, as in 'y ~ x'; got {text!r}")
    if not text.rpartition("~")[2].strip():
        raise FormulaError(
            f"the {which} {text!r} has nothing after ~; write '~ 1' for no covariates"
        )
    formulaic = load_formulaic()
    context = {"__formulaic_variables_available__": list(columns)}
    try:
        _check_powers(text, formulaic.parser.DefaultFormulaParser().get_ast(text, context=context))
        return formulaic.Formula.from_spec(text, context=context)
    except FormulaError:
        raise
    except SyntaxError as error:  # of Python, within a function
        _check_words(f"the {which} {text!r}", set(re.findall(r"\w+", text)) & set(columns))
        raise FormulaError(f"the {which} {text!r} cannot be read: {error.msg}") from error
    except Exception as error:  # what fails first in formulaic depends on the text alone
        raise FormulaError(f"the {which} {text!r} cannot be read: {reason(error)}") from error


def _check_words(where: str, columns: Iterable[str]) -> None:
    """Refuse columns within a function that have the name of a keyword: Python reads that."""
    for name in filter(keyword.iskeyword, columns):
        raise FormulaError(
            f"{where} has the column {name!r} within a function, where it is a keyword of Python; "
            "rename the column"
        )


def _check_powers(text: str, tree: Any) -> None:
    """Refuse a power of one term: it is the term itself, and not what was meant."""
    operands = list(getattr(tree, "args", ()))
    if operands and tree.operator.symbol in ("**", "^") and not hasattr(operands[0], "args"):
        term, power = (operand.token for operand in operands)
        raise FormulaError(
            f"{text!r} has a power of one term, {term}{tree.operator.symbol}{power}, which as in R "
            f"is the term itself; write I({term}**{power})"
        )
    for operand in operands:
        _check_powers(text, operand)


def _parse_gate(text: Any, columns: Sequence[str]) -> Any:
    parsed = _parse("gate's formula", text, columns)
    if hasattr(parsed, "lhs") or not text.lstrip().startswith("~"):
        raise FormulaError(
            f"the gate's formula {text!r} must begin with ~ and have no response, as in '~ x'"
        )
    return parsed


def _terms(where: str, terms: Any) -> Any:
    """The terms of one part, once it is known to be one, with an intercept, and unscaled."""
    if not isinstance(terms, load_formulaic().SimpleFormula):
        raise FormulaError(f"{where} has parts divided by |; the gate has a formula of its own")
    if not any(term.degree == 0 for term in terms):
        raise FormulaError(
            f"{where} leaves out the intercept, but every expert and every gate has one; "
            "leave out '- 1' or '+ 0'"
        )
    for term in terms:
        if term.degree and len(term.factors) > term.degree:
            raise FormulaError(
                f"{where} scales a term, {term}; leave out the number, or write it inside I()"
            )
    return terms


def _shared(terms: Any, others: Any) -> Any:
    """The terms, written as among the others where they are the same, as ``a:b`` and ``b:a``."""
    known = {term: term for term in others}
    return load_formulaic().SimpleFormula([known.get(term, term) for term in terms])


def _response(text: str, terms: Any, columns: Sequence[str]) -> _Uses:
    where = f"the formula {text!r}"
    found = list(terms) if isinstance(terms, load_formulaic().SimpleFormula) else []
    if len(found) != 1 or len(found[0].factors) != 1:
        raise FormulaError(f"{where} must have one response before ~, as in 'y ~ x'")
    uses = _uses(where, found, columns)
    if not uses.columns:
        raise FormulaError(f"{where} has a constant before ~, {found[0]}; name a column")
    return uses


# --- expressions


class _Uses(NamedTuple):
    columns: dict[str, None]  # in order
    categorical: frozenset[str]

    def joined(self, other: _Uses) -> _Uses:
        return _Uses(self.columns | other.columns, self.categorical | other.categorical)


def _uses(where: str, terms: Any, columns: Sequence[str]) -> _Uses:
    """The columns that terms use, every expression in them being one that may be evaluated."""
    expression = _Expression(where, columns)
    for factor in (factor for term in terms for factor in term.factors):
        expression.check(factor)
    expression.check_names()
    return _Uses(expression.found, frozenset(expression.categorical))


class _Expression(ast.NodeVisitor):
    """Arithmetic and known functions of columns; anything else would run as Python."""

    def __init__(self, where: str, columns: Sequence[str]) -> None:
        self.where, self.columns = where, columns
        self.found: dict[str, None] = {}
        self.categorical: set[str] = set()
        self.called: set[str] = set()
        self.aliases: dict[str, str] = {}

    def check(self, factor: Any) -> None:
        method = factor.eval_method.value
        if method == "lookup":
            self._use(factor.expr)
        elif method == "python":
            self.visit(self._tree(factor.expr))

    def check_names(self) -> None:
        for name in self.called & set(self.found):
            raise FormulaError(
                f"{self.where} uses the function {name}, which a column of that name hides; "
                "rename the column"
            )

    def _tree(self, text: str) -> ast.Expression:
        """Names in backticks become names of Python, which ``aliases`` translates back."""
        from formulaic.utils.code import sanitize_variable_names

        try:
            sanitised = sanitize_variable_names(text, {}, self.aliases)
            _check_words(self.where, self.aliases.values())
            return ast.parse(sanitised, mode="eval")
        except SyntaxError as error:
            raise FormulaError(f"{self.where} cannot be read at {text}: {error.msg}") from None

    def _use(self, name: str) -> None:
        if name not in self.columns:
            raise FormulaError(
                f"{self.where} names {name!r}, but the columns are {', '.join(self.columns)}; "
                "name some of these"
            )
        self.found[name] = None

    def visit_Name(self, node: ast.Name) -> None:
        if node.id not in _CONTRASTS or node.id in self.columns:
            self._use(self.aliases.get(node.id, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not _is_contrast(ast.unparse(node)):
            raise self._refusal(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = ast.unparse(node.func)
        ufunc = _ufunc(name)
        if not (ufunc or name in FUNCTIONS or _is_contrast(name)):
            raise FormulaError(
                f"{self.where} calls {name}; the functions are {', '.join(FUNCTIONS)}, and those "
                "of NumPy that work value by value, such as np.sqrt"
            )
        self.called.add(name.partition(".")[0])
        if name == "C" and node.args and isinstance(node.args[0], ast.Name):
            self.categorical.add(self.aliases.get(node.args[0].id, node.args[0].id))
        if ufunc and (node.keywords or len(node.args) != ufunc.nin):  # out= would change columns
            raise self._refusal(node)
        if any(keyword.arg is None or keyword.arg.startswith("_") for keyword in node.keywords):
            raise self._refusal(node)
        for child in (*node.args, *node.keywords):
            self.visit(child)

    def generic_visit(self, node: ast.AST) -> None:
        if not isinstance(node, _PLAIN) or isinstance(getattr(node, "op", None), ast.MatMult):
            raise self._refusal(node)
        super().generic_visit(node)

    def _refusal(self, node: ast.AST) -> FormulaError:
        return FormulaError(
            f"{self.where} has {ast.unparse(node)!r}, which is neither arithmetic nor a function "
            "of columns; compute it beforehand as a column of the table"
        )


def _is_contrast(name: str) -> bool:
    return name in _CONTRASTS or re.fullmatch(r"contr\.[a-z]\w*", name) is not None


def _ufunc(name: str) -> np.ufunc | None:
    """A function of NumPy from values to values, one by one, by its name in a formula."""
    module, _, name = name.partition(".")
    found = getattr(np, name, None) if module == "np" else None
    elementwise = isinstance(found, np.ufunc) and found.signature is None and found.nout == 1
    return found if elementwise else None


# --- formulaic


def load_formulaic() -> Any:
    """The module.

    Raises
    ------
    FormulaError
        If it is not installed.
    """
    try:
        import formulaic
    except ModuleNotFoundError as error:
        raise FormulaError(
            f'formulas need formulaic, but {error}; run pip install "bayesmoe[formula]"'
        ) from error
    return formulaic


def reason(error: BaseException) -> str:
    """The first line of an error of formulaic; the formula with its fault in colour follows it."""
    return str(error).partition("\n")[0] or type(error).__name__
