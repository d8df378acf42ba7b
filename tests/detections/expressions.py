"""Regular expressions in the subset that Splunk (PCRE) and Elastic (Lucene) read in the same way.

Splunk searches in the value, Elastic matches all of it and has no anchors. An expression therefore starts
with `.*` and ends with `.*`, and the borders of the value are written for both: `(""|$|[^a-z].*)`. In Lucene
`""` is the empty string and `$` a character; in PCRE it is the other way round.
"""

import re
from functools import lru_cache

try:
    from re import _constants as constants, _parser as parser
except ImportError:  # Python 3.10 and earlier
    import sre_constants as constants
    import sre_parse as parser

# Elastic refuses longer expressions (`index.max_regex_length`).
MAX_LENGTH = 1000
# Elastic refuses expressions whose automaton costs more than 100,000 (ten times `max_determinized_states`).
# The automata here are not those of Lucene: half of it is permitted.
MAX_EFFORT = 50_000
CHARACTERS = frozenset(map(chr, range(32, 127))) | {"\n", "é"}


def tokens(pattern):
    """Yields the tokens of an expression: escapes, classes, `""`, and single characters."""
    at = 0
    while at < len(pattern):
        end = at + 1
        if pattern[at] == "\\":
            end = at + 2
        elif pattern[at] == "[":
            while pattern[end] != "]":
                end += 2 if pattern[end] == "\\" else 1
            end += 1
        elif pattern.startswith('""', at):
            end = at + 2
        yield pattern[at:end]
        at = end


@lru_cache(maxsize=None)
def lucene_to_python(pattern):
    """Translates what only Lucene reads so: `""` is the empty string, `^` and `$` are characters."""
    translated = {'""': "(?:)", "^": r"\^", "$": r"\$"}
    return "".join(translated.get(token, token) for token in tokens(pattern))


def portability_errors(pattern):
    if len(pattern) > MAX_LENGTH:
        yield f"an expression has {len(pattern)} characters, more than {MAX_LENGTH}"
    for token in tokens(pattern):
        if token[0] == "[":
            inside = re.sub(r"\\.", "", token[1:-1].removeprefix("^"))
            if "-" in re.sub(r"[A-Za-z0-9]-[A-Za-z0-9]", "", inside):
                yield f"`-` without a backslash in {token}"
            if re.search(r"\\[A-Za-z0-9]", token):
                yield f"{token} has an escape that Lucene does not know"
        elif re.match(r"\\[A-Za-z0-9]", token) or token in set('#@&<>~"'):
            yield f"{token} has another meaning in Lucene or PCRE"
    if "(?" in pattern or re.search(r"[*+?}][?+]", pattern):
        yield "Lucene has no lookaround, flags, or lazy and possessive quantifiers"
    if effort(pattern) > MAX_EFFORT:
        yield "the automaton of an expression is too large for Elastic"


def without_an_alternative(pattern):
    """Yields the expression without each alternative of its groups."""
    parts = list(tokens(pattern))
    open_groups = []
    for end, part in enumerate(parts):
        if part == "(":
            open_groups.append([end])
        elif part == "|":
            open_groups[-1].append(end)
        elif part == ")":
            borders = open_groups.pop() + [end]
            for start, stop in zip(borders, borders[1:]):
                if len(borders) > 2:
                    # One of the two `|` around the alternative goes with it.
                    cut = parts[:start] + parts[stop:] if start != borders[0] else (
                        parts[:start + 1] + parts[stop + 1:])
                    yield "".join(parts[start + 1:stop]), "".join(cut)


def effort(pattern):
    """Returns the cost of making an automaton deterministic: the sum of the sizes of its states, each of
    which is a set of states of the other automaton. Stops above the limit."""
    start, end, moves, empty = automaton(lucene_to_python(pattern))

    # Of characters that no move tells apart, one is enough.
    sets = list({frozenset(characters) for of_state in moves for characters, _ in of_state})
    different = {tuple(it in characters for characters in sets): it for it in CHARACTERS}.values()

    def closed(states):
        found, left = set(states), list(states)
        while left:
            for state in empty[left.pop()]:
                if state not in found:
                    found.add(state)
                    left.append(state)
        return frozenset(state for state in found if moves[state] or state == end)

    seen = {closed({start})}
    left, cost = list(seen), 0
    while left and cost <= MAX_EFFORT:
        states = left.pop()
        cost += len(states)
        outgoing = [move for state in states for move in moves[state]]
        for character in different:
            following = closed({target for characters, target in outgoing if character in characters})
            if following and following not in seen:
                seen.add(following)
                left.append(following)
    return cost


def automaton(pattern):
    """Returns an automaton: its start, its end, and for each state the moves by a character and by none."""
    moves, empty = [], []

    def state():
        moves.append([])
        empty.append([])
        return len(moves) - 1

    def sequence(tree, at):
        for operation, argument in tree:
            at = part(operation, argument, at)
        return at

    def part(operation, argument, at):
        if operation is constants.SUBPATTERN:
            return sequence(argument[3], at)
        if operation is constants.BRANCH:
            end = state()
            for alternative in argument[1]:
                start = state()
                empty[at].append(start)
                empty[sequence(alternative, start)].append(end)
            return end
        if operation is constants.MAX_REPEAT:
            return repeat(*argument, at)
        end = state()
        moves[at].append((characters_of(operation, argument), end))
        return end

    def repeat(least, most, tree, at):
        for _ in range(least):
            at = sequence(tree, at)
        start, end = state(), state()
        empty[at] += [start, end]
        last = sequence(tree, start)
        empty[last].append(end)
        if most == constants.MAXREPEAT:
            empty[last].append(start)
        return end

    start = state()
    return start, sequence(parser.parse(pattern, re.DOTALL), start), moves, empty


def characters_of(operation, argument):
    if operation is constants.LITERAL:
        return {chr(argument)}
    if operation is constants.NOT_LITERAL:
        return CHARACTERS - {chr(argument)}
    if operation is constants.ANY:
        return CHARACTERS
    if operation is not constants.IN:
        raise ValueError(f"{operation} is not supported")
    found = set()
    for kind, value in argument:
        if kind is constants.LITERAL:
            found.add(chr(value))
        elif kind is constants.RANGE:
            found.update(chr(code) for code in range(value[0], value[1] + 1))
    return CHARACTERS - found if argument[0][0] is constants.NEGATE else found
