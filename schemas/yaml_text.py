"""YAML that people write: parsed with the line of every value, and one kind of error whatever is wrong with it."""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node, ScalarNode

_UNREADABLE = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, NotImplementedError,
    RecursionError,
)  # fmt: skip
"""What ruamel.yaml lets through, for example for 2017-02-30, `!!float x` or a key that can't be hashed."""


class NotYaml(Exception):
    """The text can't be read; `line` counts from 1, None where nobody knows it."""

    def __init__(self, line: int | None, problem: str) -> None:
        super().__init__(problem)
        self.line, self.problem = line, problem

    def at(self, name: str) -> str:
        """`name`:line: what is wrong."""
        return f"{name}{'' if self.line is None else f':{self.line}'}: {self.problem}"


class _Constructor(RoundTripConstructor):
    """Says of which value an error speaks."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        try:
            if isinstance(node, ScalarNode):
                node.value.encode()  # "\ud800" is half of a character, which nothing can store or print
            return super().construct_object(node, deep)
        except _UNREADABLE as error:
            raise _Unreadable(_short(error), node.start_mark.line + 1) from error


class _Unreadable(Exception):
    """The innermost value that could not be made."""

    def __init__(self, cause: str, line: int) -> None:
        super().__init__(cause)
        self.cause, self.line = cause, line


def load_yaml(text: str) -> Any:
    """The tree of a YAML text, with positions (ruamel.yaml's CommentedMap and CommentedSeq). Raises NotYaml."""
    yaml = YAML(typ="rt")
    yaml.Constructor = _Constructor
    try:
        return yaml.load(text)
    except DuplicateKeyError as error:
        problem = (error.problem or "duplicate key").splitlines()[0]
        raise NotYaml(error.problem_mark.line + 1, f"{problem}; keep one") from error
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise NotYaml(line, f"not valid YAML: {error.problem or error.context}") from error
    except _Unreadable as error:
        raise NotYaml(
            error.line, f"not valid YAML: this value or key can't be read ({error.cause}); put text in quotes"
        ) from error
    except YAMLError as error:
        raise NotYaml(None, f"not valid YAML: {str(error).splitlines()[0]}") from error
    except _UNREADABLE as error:
        raise NotYaml(None, f"not valid YAML: it can't be read ({_short(error)})") from error


def _short(error: Exception) -> str:
    return str(error)[:100] or type(error).__name__
