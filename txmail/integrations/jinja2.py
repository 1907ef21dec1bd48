"""Templates by Jinja2 (extra ``templates``), in a sandbox.

A template may be hostile, or just wrong. The sandbox is Jinja2's `ImmutableSandboxedEnvironment`
with further limits, set here and in `sandbox`:

1. A template reaches only the attributes on a list. Of a mapping it reaches the keys first.
2. Only the filters and tests on a list exist.
3. Only the statements and expressions in `_NODES` are allowed: no include, import or macro.
4. All work is charged to a quota before it is done. A turn of a loop costs by the size of its body.
   A call, filter, test, comparison or slice costs by its operands and its largest result. A
   template that exceeds its quota raises an error, at the same place on every machine.
5. Fields are data: ``|safe`` is for constants only.

A template can write scalars only: a list or a method in a mail is a mistake. None becomes the empty
string.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NoReturn

from jinja2 import Template, TemplateSyntaxError, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.nodes import Node
from jinja2.visitor import NodeTransformer
from zope.interface import implementer

from ..common.shown import echo, name_of
from ..exceptions import TemplateError
from ..interfaces import ITemplateEngine, ITemplateText
from ..message.templates.template_values import Field, Pieces
from .sandbox import FILTERS, TESTS, Sandbox
from .sandbox_costs import MAX_OUTPUT, Refused, limit_output

#: The most characters of a template, and the most names, values, operators and statements in it.
MAX_SOURCE = 1024 * 1024
MAX_NODES = 10_000
#: The most characters of an error of Jinja2 that an error of txmail repeats.
_ECHO = 120

_NODES: frozenset[type[Node]] = frozenset(
    {
        *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name),
        *(nodes.If, nodes.For, nodes.With, nodes.Assign, nodes.CondExpr),
        *(nodes.Filter, nodes.Test, nodes.Call, nodes.Keyword),
        *(nodes.Getattr, nodes.Getitem, nodes.Slice, nodes.Concat),
        *(nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair),
        *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Neg, nodes.Pos),
        *(nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Pow),
    }
)
#: Names of objects of Jinja2.
_NAMES = frozenset({"self", "super", "caller", "varargs", "kwargs"})


@implementer(ITemplateEngine)
class Jinja2Engine:
    """See `ITemplateEngine`. `max_output` is in characters, for each part of a message."""

    def __init__(self, max_output: int = MAX_OUTPUT) -> None:
        self._max_output = max_output
        self._environments = {html: Sandbox(html) for html in (False, True)}

    def compile(self, source: str, part: str, *, html: bool = False) -> ITemplateText:
        """See `ITemplateEngine`."""
        if not isinstance(source, str):
            raise TemplateError("a string is needed", field=part, value=source)
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"more than {MAX_SOURCE} characters", field=part)
        environment = self._environments[html]
        try:
            tree = environment.parse(source)
            pieces = _pieces(tree)
            code = environment.compile(_rewritten(tree, environment))
        except TemplateSyntaxError as error:
            problem = (error.message or "not a template")[:_ECHO]
            raise TemplateError(problem, field=part, line=error.lineno) from None
        except (RecursionError, MemoryError, SyntaxError, ValueError, OverflowError) as error:
            problem = f"too complicated ({name_of(type(error))})"
            raise TemplateError(problem, field=part) from None
        template = environment.template_class.from_code(environment, code, environment.globals)
        return _Text(template, pieces, part, self._max_output)


@implementer(ITemplateText)
class _Text:
    """See `ITemplateText`."""

    def __init__(
        self, template: Template, pieces: Pieces | None, part: str, max_output: int
    ) -> None:
        self.pieces = pieces
        self._template = template
        self._part = part
        self._max_output = max_output

    def render(self, fields: Mapping[str, Any]) -> str:
        """See `ITemplateText`."""
        try:
            context = self._template.new_context(dict(fields))
            chunks = self._template.root_render_func(context)
            return "".join(limit_output(chunks, self._max_output))
        except (Refused, UndefinedError, SecurityError) as error:
            problem = str(error)[:_ECHO]
            line = self._line(error.__traceback__)
        except Exception as error:
            # Other errors may repeat the data.
            problem = f"it failed ({name_of(type(error))})"
            line = self._line(error.__traceback__)
        raise TemplateError(problem, field=self._part, line=line)

    def _line(self, traceback: TracebackType | None) -> int | None:
        """The line of the template in which an error was raised."""
        line = None
        while traceback is not None:
            if traceback.tb_frame.f_globals.get("__jinja_template__") is self._template:
                line = self._template.get_corresponding_lineno(traceback.tb_lineno)
            traceback = traceback.tb_next
        return line


# -- parsing


def _pieces(tree: nodes.Template) -> Pieces | None:
    """The pieces of a template that has only text and fields; None for another one."""
    found: list[str | Field] = []
    for statement in tree.body:
        if not isinstance(statement, nodes.Output):
            return None
        for node in statement.nodes:
            if isinstance(node, nodes.TemplateData):
                found.append(node.data)
            elif (field := _field(node)) is not None:
                found.append(field)
            else:
                return None
    return tuple(found)


def _field(node: Node) -> Field | None:
    """The field, perhaps with a default, that `node` is; None for another node."""
    if isinstance(node, nodes.Name):
        return None if node.name in _NAMES else Field(node.name)
    if (
        isinstance(node, nodes.Filter)
        and node.name in ("default", "d")
        and isinstance(node.node, nodes.Name)
        and len(node.args) == 1
        and isinstance(node.args[0], nodes.Const)
        and isinstance(node.args[0].value, str)
        and not (node.kwargs or node.dyn_args or node.dyn_kwargs)
    ):
        return Field(node.node.name, node.args[0].value)
    return None


def _rewritten(tree: nodes.Template, environment: Sandbox) -> nodes.Template:
    """`tree` with filters that charge for work. Raises `TemplateSyntaxError` for a bad node."""
    _Rewriter().visit(tree)
    tree.set_environment(environment)
    return tree


class _Rewriter(NodeTransformer):
    """Refuses nodes that are not allowed, and inserts the filters that charge for work."""

    def __init__(self) -> None:
        self._left = MAX_NODES

    def visit(self, node: Node, *args: Any, **kwargs: Any) -> Any:
        """Visit a node. Refuses it if there are too many."""
        self._left -= 1
        if self._left < 0:
            _refuse(f"more than {MAX_NODES} names, values, operators and statements", node)
        return super().visit(node, *args, **kwargs)

    def generic_visit(self, node: Node, *args: Any, **kwargs: Any) -> Node:
        """Visit a node. Refuses it if it is not in `_NODES`."""
        if type(node) not in _NODES:
            _refuse(f"{type(node).__name__} is not allowed in templates", node)
        return super().generic_visit(node, *args, **kwargs)

    def visit_Name(self, node: nodes.Name) -> Node:
        if node.name in _NAMES:
            _refuse(f"{echo(node.name)} is not allowed in templates", node)
        return node

    def visit_Filter(self, node: nodes.Filter) -> Node:
        if node.name == "safe":
            if not isinstance(node.node, nodes.Const):
                _refuse("|safe is for constants only: fields are data", node)
            return nodes.MarkSafe(node.node, lineno=node.lineno)
        if node.name not in FILTERS:
            _refuse(f"there is no filter {echo(node.name)}", node)
        return self.generic_visit(node)

    def visit_Test(self, node: nodes.Test) -> Node:
        if node.name not in TESTS:
            _refuse(f"there is no test {echo(node.name)}", node)
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> Node:
        if node.recursive:
            _refuse("a recursive loop is not allowed in templates", node)
        before = self._left
        self.generic_visit(node)
        size = nodes.Const(before - self._left, lineno=node.lineno)
        node.iter = _filtered(node.iter, "_charge_loop", size)
        return node

    def visit_Compare(self, node: nodes.Compare) -> Node:
        self.generic_visit(node)
        node.expr = _charged(node.expr)
        for operand in node.ops:
            operand.expr = _charged(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "_charge_slice")
        else:
            node.arg = _charged(node.arg)
        return node

    def visit_Concat(self, node: nodes.Concat) -> Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "_concat")

    def visit_List(self, node: nodes.List) -> Node:
        return _filtered(self.generic_visit(node), "_charge_value")

    def visit_Dict(self, node: nodes.Dict) -> Node:
        return _filtered(self.generic_visit(node), "_charge_value")

    def visit_Tuple(self, node: nodes.Tuple) -> Node:
        self.generic_visit(node)
        return _filtered(node, "_charge_value") if node.ctx == "load" else node


def _filtered(node: Any, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(arguments), [], None, None, lineno=node.lineno)


def _charged(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, "_charge_value")


def _refuse(problem: str, node: Node) -> NoReturn:
    raise TemplateSyntaxError(problem, node.lineno)
