"""The expression language of rules and payload mappings: Jinja's, sandboxed and kept small.

An expression is written by the operator and computed over values that strangers may have written. So the text is
compiled once, at start-up, and never built from data; and no value can make it call something, run for long or
grow without bound: whatever would is a `BadValue`.

What is *not known yet* (a field that the source never mentioned) is told apart from what is empty. It may be asked
about (``or``, ``if``, ``is defined``, ``default``) and equals nothing; but a result that would be made of it, or
that would come out true only for want of it (``status != 'blocked'``), is no result: `Result.unknown` names the
field. Half a name or a premature yes is never written. A field that is known and empty is ``""``, never ``None``.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.environment import TemplateExpression
from jinja2.exceptions import TemplateSyntaxError, UndefinedError
from jinja2.filters import FILTERS
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from jinja2.utils import missing, pass_context

from bridge import values
from bridge.errors import BridgeError
from bridge.model import Value
from bridge.values import MAX_DIGITS, MAX_TEXT, BadValue

FIELDS = "fields"  # always there: fields['odd-name'], for names that are no identifiers
_REGION = " region"  # a variable that no expression can name

MAX_SIZE = 8 * 1024 * 1024  # characters and entries, altogether, of what one step of an expression handles
MAX_DEPTH = 32
MAX_WIDTH = 1_000  # of padding, of a batch, of decimal places
MAX_SOURCE = 4_000  # characters of an expression


@dataclass(frozen=True, slots=True)
class Result:
    """What an expression came to. *unknown* is the field for want of which there is no value; "": there is one."""

    value: Value = None
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Expression:
    """A compiled expression. It holds no state: any number of threads may evaluate it at once.

    *names* are the variables that it reads, so the source's field names where it is a rule.
    """

    text: str
    names: frozenset[str]
    _compiled: TemplateExpression = field(repr=False, compare=False)
    _region: str = field(default="", repr=False)
    _path: tuple[str, ...] = field(default=(), repr=False)  # of ``a.b.c``, which needs no template

    @classmethod
    def compile(cls, text: str, *, region: str = "", condition: bool = False) -> Expression:
        """Compile *text*. *region* ("US") is where ``e164`` takes national numbers to be from.

        *condition*: the result is asked for a yes or no, so a text in it that says no (``"false"``) is none.

        Raises:
            ValueError: the text is no expression; the message is one line for whoever wrote it.
        """
        try:
            tree = _named(_parse(text))
            names = frozenset(_check(tree))
            path = () if condition else _path(tree)
            compiled = _compile(tree, condition)
        except (RecursionError, SyntaxError, MemoryError) as error:  # Python's own compiler has limits, too
            raise ValueError("the expression is nested too deeply") from error
        return cls(text, names, compiled, region, path)

    def result(self, variables: Mapping[str, Any]) -> Result:
        """Compute the expression; a variable that is absent from *variables* is not known yet.

        Raises:
            BadValue: the values do not allow it; the message is one sentence without a value.
        """
        try:
            if self._path and (part := _walk(variables, self._path)) is not missing:
                return Result(_plain(part))
            given = {name: _seen(variables[name]) for name in self.names if name in variables}
            found = self._compiled({**given, FIELDS: variables, _REGION: self._region})
            if isinstance(found, Undefined):
                return Result(unknown=str(found._undefined_name or "a value"))
            return Result(_plain(found))
        except _NotKnown as error:
            return Result(unknown=str(error))
        except (BadValue, TooMuch):
            raise
        except RecursionError as error:
            raise BadValue("The value is nested too deeply.") from error
        except TypeError as error:
            raise BadValue("The rule does not work with this kind of value.") from error
        except Exception as error:  # whatever a stranger's value makes a filter raise, it is the value's fault
            raise BadValue("The rule cannot be computed with this value.") from error

    def evaluate(self, variables: Mapping[str, Any]) -> Value:
        """Return the value, or None where it is not known. Raises `BadValue` as `result` does."""
        return self.result(variables).value

    def __str__(self) -> str:
        return self.text


# --- how much may be computed ------------------------------------------------------------------------------------


class TooMuch(BridgeError):
    """More is asked for than `within` allows."""


@dataclass
class _Allowance:
    """What is left for all expressions together. Once it is spent, every further step says so."""

    size: int
    until: float  # by `time.monotonic`

    def spend(self, size: int) -> None:
        self.size -= size
        if self.size < 0 or time.monotonic() > self.until:
            self.size = -1
            raise TooMuch(
                "These expressions compute more than may be computed at once. Nothing was looked at further."
            )


_ALLOWANCE: ContextVar[_Allowance | None] = ContextVar("allowance", default=None)


@contextmanager
def within(size: int, seconds: float) -> Iterator[None]:
    """Let expressions of this thread compute no more than this, altogether: for whoever wrote one just now.

    *size* is of characters and entries that steps handle. Each step is bounded by `MAX_SIZE` anyway; but an
    expression can have many steps, and there can be many expressions. Raises `TooMuch` inside when nothing is
    left.
    """
    token = _ALLOWANCE.set(_Allowance(size, time.monotonic() + seconds))
    try:
        yield
    finally:
        _ALLOWANCE.reset(token)


# --- what is not known -------------------------------------------------------------------------------------------


class _NotKnown(UndefinedError):
    """A value was to be made of something that is not known yet; the message is its name."""


class _Unknown(Undefined):
    """A variable that is not known. Truth, membership and equality answer no; any other use is `_NotKnown`."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,
        name: str | None = None,
        exc: type[Exception] = _NotKnown,
    ) -> None:
        super().__init__(str(name or "a value"), obj, name or "a value", _NotKnown)

    __iter__ = __str__ = __len__ = Undefined._fail_with_undefined_error
    __hash__ = Undefined.__hash__

    def __contains__(self, item: object) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return False

    def __ne__(self, other: object) -> bool:
        return True


# --- values on their way through ---------------------------------------------------------------------------------


def _seen(value: Any) -> Any:
    return "" if value is None else value


def _walk(variables: Any, path: tuple[str, ...]) -> Any:
    """Return the part of *variables* at *path*, `missing` where a template must say what its absence means."""
    found = variables
    for name in path:
        if not isinstance(found, dict | Mapping) or name not in found:
            return missing
        found = found[name]
    return found


def _plain(value: Any) -> Any:
    """Return *value* as plain data that is finite and not too large: no nulls, no generators, no markup."""
    allowance = _ALLOWANCE.get()
    if allowance is not None:
        return _allowed(value, allowance)
    if type(value) is str and len(value) < MAX_SIZE:
        return value
    return _copy(value, [MAX_SIZE], MAX_DEPTH)


def _allowed(value: Any, allowance: _Allowance) -> Any:
    """Return *value* as `_plain` does, and take what it costs from *allowance*."""
    allowance.spend(1)
    budget = [min(MAX_SIZE, allowance.size)]
    before = budget[0]
    try:
        return _copy(value, budget, MAX_DEPTH)
    finally:
        allowance.spend(before - budget[0])


def _copy(value: Any, budget: list[int], depth: int) -> Any:
    """Copy *value*, spending *budget* (one number, shared by all levels) for every character and entry."""
    budget[0] -= 1
    if isinstance(value, str):
        budget[0] -= len(value)
        if type(value) is str and budget[0] >= 0 and depth >= 0:
            return value  # as nearly always
    if budget[0] < 0:
        raise BadValue("The value is too large.")
    if depth < 0:
        raise BadValue("The value is nested too deeply.")
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value)  # not a subclass of it
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(value)
    if isinstance(value, Undefined):
        return value._fail_with_undefined_error()
    if isinstance(value, Mapping):
        return {_key(key): _copy(part, budget, depth - 1) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset | Iterator) or hasattr(value, "__iter__"):
        return [_copy(part, budget, depth - 1) for part in value]
    raise BadValue("The rule gives a function, not a value; a function is called with ().")


def _key(key: Any) -> str:
    return key if isinstance(key, str) else str(_number(key)) if isinstance(key, int | float) else ""


def _number(value: int | float) -> int | float:
    if not -(10**MAX_DIGITS) < value < 10**MAX_DIGITS and (isinstance(value, int) or not math.isfinite(value)):
        raise BadValue(f"A number in the rule is not finite or has more than {MAX_DIGITS} digits.")
    return value


def _short(argument: Any) -> Any:
    """Return an argument of a step as plain data; one text of it may have `MAX_TEXT` characters."""
    if isinstance(argument, str) and len(argument) > MAX_TEXT:
        raise BadValue(f"The text is longer than {MAX_TEXT:,} characters.")
    return _plain(argument)


# --- filters and methods, with bounds ----------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Jinja's filters that rules go without: their result differs from run to run, or is layout for a page, or they
# take quadratic time, or they reach for attributes.
_LEFT_OUT = frozenset({"random", "pprint", "urlize", "xmlattr", "wordwrap", "attr", "groupby"})
_LEFT_OUT_TESTS = frozenset({"callable", "escaped", "sameas", "filter", "test"})

# Filters of one text. Given a list, Jinja would print it with brackets and quotes.
_OF_TEXT = _words(
    "capitalize center escape e forceescape format indent lower replace safe striptags title trim truncate upper "
    "wordcount"
)
_WITH_WIDTH = frozenset({"center", "indent", "truncate", "batch", "slice", "round"})
_WITH_TEST = frozenset({"select", "reject", "selectattr", "rejectattr"})
_METHODS: Mapping[type, frozenset[str]] = {
    str: _words(
        "capitalize casefold center count endswith find index isalnum isalpha isascii isdecimal isdigit islower "
        "isnumeric isspace istitle isupper ljust lower lstrip partition removeprefix removesuffix replace rfind "
        "rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title upper "
        "zfill"
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"count", "index"}),
}
_METHODS_WITH_WIDTH = frozenset({"center", "ljust", "rjust", "zfill"})


def _bound(step: str, arguments: list[Any], named: Mapping[str, Any]) -> None:
    """Refuse what would make much of little: wide padding, replacing by something long, printf widths."""
    first, others = arguments[0] if arguments else "", [*arguments[1:], *named.values()]
    if (step in _WITH_WIDTH or step in _METHODS_WITH_WIDTH) and any(
        isinstance(other, int | float) and abs(other) > MAX_WIDTH for other in others
    ):
        raise BadValue(f"A width or count in the rule is greater than {MAX_WIDTH:,}.")
    if step == "indent" and isinstance(first, str):
        _within((first.count("\n") + 1) * MAX_WIDTH)
    if step == "replace" and isinstance(first, str):
        texts = [str(other) for other in others if isinstance(other, str | int | float)]
        if len(texts) >= 2:
            _within(
                len(first) + (len(first) + 1) * len(texts[1]) if not texts[0] else _replaced(first, *texts[:2])
            )
    if step == "join" and isinstance(first, list) and others:
        _within(len(first) * len(str(others[0])))
    if step == "format" and (not isinstance(first, str) or re.search(r"\*|[0-9]{3}", first)):
        raise BadValue("The format in the rule asks for too wide a text.")
    if step in _WITH_TEST and isinstance(first, list):
        # Each entry may be looked for in all of another list.
        _within(len(first) * max((len(o) for o in others if isinstance(o, str | list | dict)), default=0))
    if step == "sum" and any(isinstance(other, list) for other in others):
        raise BadValue("Only numbers can be summed up.")


def _replaced(text: str, old: str, new: str) -> int:
    return len(text) + text.count(old) * len(new)


def _within(size: int) -> None:
    if size > MAX_SIZE:
        raise BadValue("The value is too large.")


def _guarded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a filter: known and plain values in, a plain value out, all of bounded size."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0  # the context or environment comes first

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        given = [_short(argument) for argument in arguments[skip:]]
        also = {key: _short(argument) for key, argument in named.items()}
        if name in _OF_TEXT and given and isinstance(given[0], list | dict):
            raise BadValue(f"The rule uses '{name}' on a list; it is for a single text.")
        _bound(name, given, also)
        return _plain(function(*arguments[:skip], *given, **also))

    return call


@pass_context
def _e164(context: Context, value: Value, region: str | None = None) -> str:
    return values.e164(value, region or context.get(_REGION) or None)


CONTACT_FILTERS: Mapping[str, Callable[..., Any]] = {
    "e164": _e164,
    "date": values.day,
    "datetime": values.moment,
    "lookup": values.lookup,
    "split_name": values.split_name,
    "boolean": values.boolean,
    "number": values.number,
    "multi": values.multi,
    "email": values.email,
}


def _known(value: Any) -> Any:
    """Insist that *value* is known. The compiler puts this where an unknown one would make a condition true."""
    return value._fail_with_undefined_error() if isinstance(value, Undefined) else value


def _truth(value: Any) -> Any:
    """Return *value* as a condition takes it: CRMs write yes and no as texts, and ``"false"`` is no yes."""
    return False if isinstance(value, str) and values.says_no(value) else value


def _joined(parts: list[Any]) -> str:
    """Return *parts* one behind the other: the operator ``~``, which has no bound of its own."""
    texts, size = [], 0
    for part in parts:
        texts.append(str(_known(part)))
        size += len(texts[-1])
        _within(size)
    return str(_plain("".join(texts)))


_KNOWN, _TRUTH, _JOINED = " known", " truth", " joined"  # filters that no expression can name


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox without globals, and with a short list of what may be touched, instead of what may not."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        # Jinja would try to compute what is constant again and again: cubic in the depth of an expression.
        super().__init__(undefined=_Unknown, autoescape=False, optimized=False)
        self.globals.clear()
        lenient = {name: FILTERS[name] for name in ("default", "d")}
        strict = {name: f for name, f in FILTERS.items() if name not in _LEFT_OUT and name not in lenient}
        self.filters = {name: _guarded(name, f) for name, f in {**strict, **CONTACT_FILTERS}.items()} | lenient
        self.filters |= {_KNOWN: _known, _TRUTH: _truth, _JOINED: _joined}
        self.tests = {name: test for name, test in TESTS.items() if name not in _LEFT_OUT_TESTS}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a part of *obj*. A key of the data goes before a method: payloads do have ``items``."""
        if isinstance(obj, Undefined):
            return obj
        if isinstance(obj, Mapping) and attribute in obj:
            return _seen(obj[attribute])
        if attribute in _METHODS.get(type(obj), ()):
            return getattr(obj, attribute)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return a part that the data names. It is not repeated in messages: it may be personal."""
        argument = _known(argument)
        if isinstance(obj, Undefined):
            return obj
        if isinstance(obj, Mapping) and isinstance(argument, str | int | float) and argument in obj:
            return _seen(obj[argument])
        if isinstance(obj, str | list | tuple) and isinstance(argument, int) and -len(obj) <= argument < len(obj):
            return _seen(obj[argument])
        return self.undefined(obj=obj, name="a value")

    def call(self, context: Context, obj: Any, /, *arguments: Any, **named: Any) -> Any:
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(obj, Undefined) and obj._undefined_obj is missing:
            return obj._fail_with_undefined_error()
        if name not in _METHODS.get(type(owner), ()):
            raise BadValue("The rule calls something that this kind of value does not have.")
        given, also = [_short(argument) for argument in arguments], {k: _short(a) for k, a in named.items()}
        _bound(name, [_short(owner), *given], also)
        return _plain(obj(*given, **also))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        left, right = _known(left), _known(right)
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator != "+" and not numbers:
            raise BadValue(
                "The rule calculates with something that is not a number; the filter 'number' reads one."
            )
        if operator == "**" and abs(right) > 64:
            raise BadValue("A power in the rule is greater than 64.")
        return _plain(super().call_binop(context, operator, left, right))


_ENVIRONMENT = _Environment()


# --- compiling ---------------------------------------------------------------------------------------------------


def _parse(text: str) -> nodes.Expr:
    if not text.strip():
        raise ValueError("the expression is empty")
    if len(text) > MAX_SOURCE:
        raise ValueError(f"the expression is longer than {MAX_SOURCE:,} characters")
    if "{{" in text or "{%" in text:
        raise ValueError("write the expression alone, without {{ }} or {% %}")
    try:
        parser = Parser(_ENVIRONMENT, text, state="variable")
        tree = parser.parse_expression()
        left_over = None if parser.stream.eos else str(parser.stream.current)
    except TemplateSyntaxError as error:
        said = (error.message or "").replace("end of template", "end of the expression").rstrip(".")
        raise ValueError(f"{said}{_habit(text)}") from error
    if left_over is not None:
        raise ValueError(f"unexpected {left_over!r} after the end of the expression{_habit(text)}")
    return tree


_HABITS = {"&&": "and", "||": "or", "===": "==", "=": "==", "!": "not", "?": "a if condition else b"}


def _habit(text: str) -> str:
    """Return a hint where *text* looks like another language."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|[=!<>]=(?!=)", "", text)
    return next((f"; write '{ours}' for '{theirs}'" for theirs, ours in _HABITS.items() if theirs in bare), "")


def _path(tree: Any) -> tuple[str, ...]:
    """Return the names of ``a.b.c``, () for anything more than that."""
    if isinstance(tree, nodes.Name) and tree.name != FIELDS:
        return (str(tree.name),)
    if isinstance(tree, nodes.Getattr) and (before := _path(tree.node)):
        return (*before, str(tree.attr))
    return ()


def _compile(tree: nodes.Expr, condition: bool) -> TemplateExpression:
    settled = _settle(tree, condition=condition)
    body: list[nodes.Node] = [nodes.Assign(nodes.Name("result", "store"), settled, lineno=1)]
    whole = nodes.Template(body, lineno=1)
    whole.set_environment(_ENVIRONMENT)
    return TemplateExpression(_ENVIRONMENT.from_string(whole), undefined_to_none=False)


def _named(tree: Any) -> Any:
    """Write ``a['b']`` as ``a.b``, which is the same here: `_Environment.getitem` is left for what data names."""
    if isinstance(tree, nodes.Name) and tree.name == "self":  # Jinja's own word for the template
        tree = nodes.Getitem(nodes.Name(FIELDS, "load"), nodes.Const("self"), "load", lineno=tree.lineno)
    for name, part in tree.iter_fields():
        if isinstance(part, nodes.Node):
            setattr(tree, name, _named(part))
        elif isinstance(part, list):
            setattr(tree, name, [_named(p) if isinstance(p, nodes.Node) else p for p in part])
    if isinstance(tree, nodes.Getitem) and isinstance(tree.arg, nodes.Const) and isinstance(tree.arg.value, str):
        return nodes.Getattr(tree.node, tree.arg.value, "load", lineno=tree.lineno, environment=_ENVIRONMENT)
    return tree


def _check(tree: nodes.Expr) -> Iterator[str]:
    """Yield the names that *tree* reads, and refuse what cannot work."""
    holder = nodes.ExprStmt(tree)  # `find_all` finds what is below a node
    for test in holder.find_all(nodes.Test):
        _check_name("test", test.name)
    for step in holder.find_all(nodes.Filter):
        _check_filter(step)
    functions = [call.node for call in holder.find_all(nodes.Call) if not isinstance(call.node, nodes.Getattr)]
    if functions:
        name = functions[0].name if isinstance(functions[0], nodes.Name) else ""
        hint = f"; a filter is written: value | {name}" if name in _ENVIRONMENT.filters else ""
        raise ValueError(f"there are no functions here{hint}")
    parts = {id(part.node): part.attr for part in holder.find_all(nodes.Getattr)}
    for variable in holder.find_all(nodes.Name):
        field_name = parts.get(id(variable)) if variable.name == FIELDS else variable.name
        if field_name is None:
            raise ValueError("'fields' takes the name of one field: fields['odd-name']")
        yield field_name


def _check_filter(step: nodes.Filter) -> None:
    """Refuse unknown filters and arguments that cannot work, before the first contact meets them."""
    _check_name("filter", step.name)
    first = step.args[0] if step.args else step.kwargs[0].value if step.kwargs else None
    constant = first.value if isinstance(first, nodes.Const) and isinstance(first.value, str) else None
    if constant is not None and step.args and step.name in _TAKES_NAME:
        _check_name(_TAKES_NAME[step.name], constant)
    if step.name not in CONTACT_FILTERS or step.dyn_args or step.dyn_kwargs:
        return
    given = [None] * (len(step.args) + (2 if step.name == "e164" else 1))
    named: dict[str, None] = {str(keyword.key): None for keyword in step.kwargs}
    try:
        inspect.signature(CONTACT_FILTERS[step.name]).bind(*given, **named)
    except TypeError as error:
        raise ValueError(f"the filter '{step.name}' has other parameters: {error}") from error
    if constant is not None:
        _try_constant(step.name, constant)


# Jinja's filters whose first argument is the name of a filter or test for every entry.
_TAKES_NAME = {"map": "filter", "select": "test", "reject": "test"}


def _check_name(what: str, name: str) -> None:
    known = _ENVIRONMENT.filters if what == "filter" else _ENVIRONMENT.tests
    if name not in known:
        raise ValueError(f"there is no {what} named '{name}'{_did_you_mean(name, known)}")


def _try_constant(name: str, value: str) -> None:
    if name == "e164" and not values.known_region(value):
        raise ValueError(f"'{value}' is no region of phone numbers; it is two capital letters such as 'US'")
    try:
        if name == "split_name":
            values.split_name("Ada Lovelace", value)
        if name == "date":
            values.day("2026-03-02", value)
        if name == "multi":
            values.multi("a;b", value)
        if name == "lookup":
            raise BadValue("the table of a lookup is like {'1': 'gold'}")
    except BadValue as error:
        raise ValueError(str(error)) from error


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, [k for k in known if k.isidentifier()], n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""


# Comparisons that are true of something unknown: as they stand, and with a "not" before them.
_TRUE_OF_UNKNOWN: Mapping[bool, frozenset[str]] = {
    False: frozenset({"ne", "notin", "!="}),
    True: frozenset({"eq", "in", "==", "equalto"}),
}


def _settle(node: Any, *, negated: bool = False, condition: bool = False) -> Any:
    """Rewrite a tree so that it keeps what the module promises.

    ``none`` and a missing ``else`` are the empty text; what is compared must be known where the comparison would
    come out true only for want of it; and where a yes or no is wanted (*condition*), a text that says no is one.
    """
    if isinstance(node, nodes.Const):
        return nodes.Const("", lineno=node.lineno, environment=_ENVIRONMENT) if node.value is None else node
    if isinstance(node, nodes.Not):
        node.node = _settle(node.node, negated=not negated, condition=True)
    elif isinstance(node, nodes.And | nodes.Or):
        node.left = _settle(node.left, negated=negated, condition=condition)
        node.right = _settle(node.right, negated=negated, condition=condition)
    elif isinstance(node, nodes.CondExpr):
        node.test = _settle(node.test, condition=True)
        node.expr1 = _settle(node.expr1, negated=negated, condition=condition)
        other = nodes.Const(None, lineno=node.lineno) if node.expr2 is None else node.expr2
        node.expr2 = _settle(other, negated=negated, condition=condition)
    else:
        _settle_parts(node)
        if isinstance(node, nodes.Concat):
            node = _through(_JOINED, nodes.List(node.nodes, lineno=node.lineno))
        if isinstance(node, nodes.Compare) and any(o.op in _TRUE_OF_UNKNOWN[negated] for o in node.ops):
            node.expr = _through(_KNOWN, node.expr)
            for operand in node.ops:
                operand.expr = _through(_KNOWN, operand.expr)
        if isinstance(node, nodes.Test) and node.name in _TRUE_OF_UNKNOWN[negated]:
            node.node = _through(_KNOWN, node.node)
            node.args = [_through(_KNOWN, argument) for argument in node.args]
        if condition and not isinstance(node, nodes.Compare | nodes.Test):
            return _through(_TRUTH, node)
    return node


def _settle_parts(node: nodes.Node) -> None:
    for name, part in node.iter_fields():
        if isinstance(part, nodes.Node):
            setattr(node, name, _settle(part))
        elif isinstance(part, list):
            setattr(node, name, [_settle(p) if isinstance(p, nodes.Node) else p for p in part])


def _through(name: str, node: nodes.Expr) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno, environment=_ENVIRONMENT)
