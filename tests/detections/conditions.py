"""Conditions of Sigma rules: evaluation, and changes that examples must notice.

A condition is a tree of tuples: `("and" | "or" | "not", children)` and `("item", field, value)`.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from expressions import lucene_to_python, tokens, without_an_alternative
from sigma.conditions import ConditionAND, ConditionFieldEqualsValueExpression, ConditionNOT, ConditionOR
from sigma.types import SigmaBool, SigmaExists, SigmaNull, SigmaNumber, SigmaRegularExpression, SigmaString
from sigma.types import SpecialChars


class Dialect(NamedTuple):
    """Comparison of values: expressions with the whole value or a part of it, strings with or without case."""

    whole: bool
    ignores_case: bool


# Sigma and Splunk.
SIGMA = Dialect(whole=False, ignores_case=True)
# Elastic, with fields that ignore case.
LUCENE = Dialect(whole=True, ignores_case=True)
# Elastic, with fields of the type keyword.
KEYWORD = Dialect(whole=True, ignores_case=False)


def tree_of(condition):
    if isinstance(condition, ConditionFieldEqualsValueExpression):
        return ("item", condition.field, condition.value)
    names = {ConditionAND: "and", ConditionOR: "or", ConditionNOT: "not"}
    kind = names.get(type(condition))
    if kind is None:
        raise ValueError(f"a condition of type {type(condition).__name__} is not supported")
    return (kind, [tree_of(child) for child in condition.args])


def items(tree):
    if tree[0] == "item":
        yield tree
    else:
        for child in tree[1]:
            yield from items(child)


def matches(tree, event, dialect):
    """Evaluates a condition. Of a field with several values one must match."""
    if tree[0] == "and":
        return all(matches(child, event, dialect) for child in tree[1])
    if tree[0] == "or":
        return any(matches(child, event, dialect) for child in tree[1])
    if tree[0] == "not":
        return not matches(tree[1][0], event, dialect)
    _, field, expected = tree
    values = event.get(field)
    values = values if isinstance(values, list) else [] if values is None else [values]
    if isinstance(expected, SigmaNull):
        return not values
    if isinstance(expected, SigmaExists):
        return bool(values) == bool(expected)
    return any(equals(expected, value, dialect) for value in values)


def equals(expected, value, dialect):
    if isinstance(expected, SigmaRegularExpression):
        pattern = str(expected.regexp)
        if dialect.whole:
            return re.fullmatch(lucene_to_python(pattern), str(value), re.DOTALL) is not None
        return re.search(pattern, str(value)) is not None
    if isinstance(expected, SigmaString):
        return string(tuple(expected.s), dialect.ignores_case).fullmatch(str(value)) is not None
    if isinstance(expected, SigmaBool):
        return value is expected.boolean
    if isinstance(expected, SigmaNumber):
        return not isinstance(value, bool) and value == expected.number
    raise ValueError(f"a value of type {type(expected).__name__} is not supported")


@lru_cache(maxsize=None)
def string(parts, ignores_case):
    """Compiles a string of texts and wildcards."""
    wildcards = {SpecialChars.WILDCARD_MULTI: ".*", SpecialChars.WILDCARD_SINGLE: "."}
    pattern = "".join(re.escape(it) if isinstance(it, str) else wildcards[it] for it in parts)
    return re.compile(pattern, re.DOTALL | re.IGNORECASE if ignores_case else re.DOTALL)


def changes(tree):
    """Yields each smaller change of a condition: its description and the changed tree."""
    if tree[0] == "item":
        _, field, value = tree
        if isinstance(value, SigmaRegularExpression):
            for gone, pattern in without_an_alternative(str(value.regexp)):
                yield f"without the alternative {gone}", ("item", field, SigmaRegularExpression(pattern))
        elif isinstance(value, SigmaString) and (value.startswith(SpecialChars.WILDCARD_MULTI)
                                                 != value.endswith(SpecialChars.WILDCARD_MULTI)):
            yield f"{value} anywhere", ("item", field, anywhere(value))
        return
    kind, children = tree
    for number, child in enumerate(children):
        if len(children) > 1:
            rest = children[:number] + children[number + 1:]
            yield f"without {describe(child)}", (kind, rest)
        for text, changed in changes(child):
            yield text, (kind, children[:number] + [changed] + children[number + 1:])


def loosened(tree):
    """Yields conditions of which one part demands less: a class of an expression is any character, a group
    is optional, a string is one of its words, or lacks its last one, or is any text."""
    if tree[0] != "item":
        for number, child in enumerate(tree[1]):
            for changed in loosened(child):
                yield (tree[0], tree[1][:number] + [changed] + tree[1][number + 1:])
        return
    _, field, value = tree
    if isinstance(value, SigmaRegularExpression):
        parts = list(tokens(str(value.regexp)))
        for at, part in enumerate(parts):
            if part[0] == "[":
                yield ("item", field, SigmaRegularExpression("".join(parts[:at] + ["."] + parts[at + 1:])))
            if part == ")" and parts[at + 1:at + 2] not in (["*"], ["?"]):
                optional = parts[:at + 1] + ["?"] + parts[at + 1:]
                yield ("item", field, SigmaRegularExpression("".join(optional)))
    elif isinstance(value, SigmaString):
        if not value.contains_special():
            yield ("item", field, SigmaExists(True))
        texts = [part for part in value.s if isinstance(part, str)]
        words = [word for text in texts for word in text.split()]
        starts = [re.sub(r"\w+\W*$", "", text) for text in texts]
        for text in (words if len(words) > 1 else []) + [start for start in starts if start.strip()]:
            yield ("item", field, anywhere(SigmaString(text, escape=False)))


def anywhere(text):
    """Returns the text with wildcards at both ends; a second one at an end changes nothing."""
    return SpecialChars.WILDCARD_MULTI + text + SpecialChars.WILDCARD_MULTI


def describe(tree):
    if tree[0] == "item":
        value = tree[2].regexp if isinstance(tree[2], SigmaRegularExpression) else tree[2]
        return f"{tree[1]}: {value}"[:100]
    parts = [describe(child) for child in tree[1]]
    return f"{tree[0]} ({', '.join(parts)[:100]})"
