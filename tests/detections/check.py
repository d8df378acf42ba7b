"""Checks the Sigma rules in config/detections.

For each rule: its metadata, its fields, its conversion for Splunk and Elastic, and its examples, as the
agent sends them. The condition is evaluated as Sigma defines it, once with regular expressions that search in
the value (Sigma, Splunk) and once with expressions that must match the whole value (Elastic). The query for
Elastic must find the same examples in a server with the mapping of docs/siem/elastic.md.

The examples are then checked: each part of a rule, such as a value of a list, is removed in turn, and at
least one example must notice it. Each example with a field of the rule must notice at least one such change.

    python check.py REPOSITORY EVENTS [--queries]

EVENTS is a file that the test `rules_agree_with_what_the_agent_sends_for_examples` writes: the events of the
examples of each rule. Needs the Python environment that `cargo xtask test` installs.
"""

import json
import re
import sys
import uuid
from pathlib import Path

from conditions import KEYWORD, LUCENE, SIGMA, changes, items, loosened, matches, tree_of
from expressions import portability_errors
from opensearch import Server, documented_mapping
from sigma.backends.elasticsearch import ESQLBackend, LuceneBackend
from sigma.backends.splunk import SplunkBackend
from sigma.collection import SigmaCollection
from sigma.processing.pipeline import ProcessingPipeline
from sigma.types import SigmaRegularExpression

BACKENDS = {"splunk": SplunkBackend, "lucene": LuceneBackend, "esql": ESQLBackend}
RULES = 10
SERVER = Path(sys.prefix) / "bin/osmem-server"
# Names of the objects of other enrichers, which docs/siem/fields.md lists as a pattern.
ENRICHED = "ai_agent.enriched."


# Fields and values that the documentation names.


def documented_fields(root):
    """Returns the names in the first column of each table of fields, without patterns such as `a.*`."""
    names = set()
    for page, header in [("docs/activity.md", "| field "), ("docs/siem/fields.md", "| ECS ")]:
        in_table = False
        for line in (root / page).read_text().splitlines():
            in_table = line.startswith(header) or (in_table and line.startswith("|"))
            name = re.match(r"\| `([^`*]+)` ", line)
            if in_table and name:
                names.add(name[1])
    return names


def documented_values(root):
    """Returns the values of `event.action` and `ai_agent.tool.kind` in the documentation."""
    columns = {"event.action": set(), "ai_agent.tool.kind": set()}
    field = None
    pages = [("docs/activity.md", {"| `event.action` | record": "event.action",
                                   "| `ai_agent.tool.kind` | tools": "ai_agent.tool.kind"}),
             ("docs/events.md", {"| event | meaning": "event.action"})]
    for page, headers in pages:
        for line in (root / page).read_text().splitlines():
            field = next((it for header, it in headers.items() if line.startswith(header)), field)
            field = field if line.startswith("|") else None
            if field and not line.startswith("| `" + field):
                columns[field].update(re.findall(r"`([^`]+)`", line.split("|")[1]))
    return columns


# Checks. Each yields the errors that it finds.


def metadata_errors(rule):
    for name in ["title", "description", "status", "level", "date", "author"]:
        if getattr(rule, name, None) in (None, ""):
            yield f"no {name}"
    if not isinstance(rule.id, uuid.UUID) or rule.id.version != 4:
        yield "the id is no random UUID"
    if not rule.references or not rule.falsepositives:
        yield "references and falsepositives are needed"
    if (rule.logsource.product, rule.logsource.service) != ("ai-agent", "activity"):
        yield "the log source is not that of README.md"
    if not rule.logsource.definition:
        yield "the log source has no definition"
    tags = [tag.name for tag in rule.tags if tag.namespace == "attack"]
    if not any(re.fullmatch(r"t\d{4}(\.\d{3})?", tag) for tag in tags):
        yield "no technique of MITRE ATT&CK"
    if not any(re.fullmatch(r"[a-z-]+", tag) for tag in tags):
        yield "no tactic of MITRE ATT&CK"


def field_errors(tree, fields, values):
    for _, field, value in items(tree):
        if field not in fields:
            yield f"the field {field} is not documented"
        if field in values and str(value) not in values[field]:
            yield f"{field} never is {value}"
        if isinstance(value, SigmaRegularExpression):
            yield from portability_errors(str(value.regexp))


def example_errors(tree, events, fields):
    for expected in [True, False]:
        count = sum(it == expected for it, _, _ in events)
        if count < 5:
            yield f"only {count} examples that {'match' if expected else 'do not match'}"
    noticed = set()
    for expected, why, event in events:
        for field in sorted(event.keys() - fields):
            if not field.startswith(ENRICHED):
                yield f"example `{why}`: the field {field} is not documented"
        for dialect in (SIGMA, LUCENE):
            if matches(tree, event, dialect) != expected:
                text = "does not match" if expected else "matches"
                yield f"example `{why}` {text} ({dialect})"
    for text, changed in changes(tree):
        found = [why for expected, why, event in events
                 if any(matches(changed, event, dialect) != expected for dialect in (SIGMA, LUCENE))]
        # Without all of its conditions but that on the product, a rule matches everything.
        if changed != (tree[0], tree[1][:1]):
            noticed.update(found)
        if not found:
            yield f"no example notices the rule {text}"
    for changed in loosened(tree):
        noticed.update(why for expected, why, event in events
                       if any(matches(changed, event, dialect) != expected for dialect in (SIGMA, LUCENE)))
    # An event without a field of the rule is an example for the enricher, which must not add one.
    compared = {field for _, field, _ in items(tree)} - {"agent.type", "event.action"}
    for _, why, event in events:
        if why not in noticed and event.keys() & compared:
            yield f"example `{why}` notices no change of the rule"
    if len({why for _, why, _ in events}) != len(events):
        yield "two examples have the same name"


def events_of(examples):
    """Returns the events: whether the rule must match, the name of the example, and the fields."""
    return [(expected, example["why"], example["event"])
            for expected, name in [(True, "match"), (False, "no_match")] for example in examples[name]]


def conversion_errors(queries):
    for name, query in queries.items():
        if not query.strip():
            yield f"the query for {name} is empty"
    # A query of Splunk that starts with a command needs a search before it.
    if queries["splunk"].lstrip().startswith("|"):
        yield "the query for splunk starts with a command that needs events"


def pipeline_errors(readme, rules):
    """Checks the names for OpenTelemetry: the pipeline in README.md."""
    pipeline = readme.split("```yaml\n")[1].split("```")[0]
    backend = LuceneBackend(ProcessingPipeline.from_yaml(pipeline))
    query = backend.convert(rules)[0]
    if "service.name:" not in query or "agent.type:" in query:
        yield "the pipeline for OpenTelemetry in README.md does not map agent.type"


def search_errors(name, tree, events, query, server):
    found = server.found(name, [event for _, _, event in events], query)
    for number, (_, why, event) in enumerate(events):
        if matches(tree, event, KEYWORD) != (number in found):
            yield f"the server {'finds' if number in found else 'does not find'} the example `{why}`"


def readme_errors(file, tree, readme):
    if f"]({file.name})" not in readme:
        yield "README.md does not list the rule"
    for field in sorted({field for _, field, _ in items(tree)}):
        if f"[{field}]" not in readme:
            yield f"fields.conf in README.md lacks {field}"


class Checks:
    """Checks of all rules, with the ids and titles that were seen so far."""

    def __init__(self, root, examples, server, show):
        self.folder = root / "config/detections"
        self.events = {rule: events_of(it) for rule, it in examples.items()}
        self.fields, self.values = documented_fields(root), documented_values(root)
        self.readme = (self.folder / "README.md").read_text()
        self.server, self.show = server, show
        self.seen = set()

    def errors_of(self, file):
        rules = SigmaCollection.from_yaml(file.read_text())
        if len(rules.rules) != 1:
            yield f"{len(rules.rules)} rules instead of one"
            return
        rule = rules.rules[0]
        for it in {rule.id, rule.title} & self.seen:
            yield f"`{it}` is used twice"
        self.seen |= {rule.id, rule.title}
        queries = {name: backend().convert(rules)[0] for name, backend in BACKENDS.items()}
        if self.show:
            print(*(f"\n# {file.stem}: {name}\n{query}" for name, query in queries.items()), sep="\n")
        events = self.events.get(file.stem, [])
        tree = tree_of(rule.detection.parsed_condition[0].parsed)
        yield from metadata_errors(rule)
        yield from field_errors(tree, self.fields, self.values)
        yield from example_errors(tree, events, self.fields)
        yield from conversion_errors(queries)
        yield from pipeline_errors(self.readme, SigmaCollection.from_yaml(file.read_text()))
        yield from search_errors(file.stem, tree, events, queries["lucene"], self.server)
        yield from readme_errors(file, tree, self.readme)

    def run(self):
        files = sorted(self.folder.glob("*.yml"))
        errors = [f"{file.name}: {error}" for file in files for error in self.errors_of(file)]
        orphans = self.events.keys() - {it.stem for it in files}
        errors += [f"examples/{name}.json has no rule" for name in sorted(orphans)]
        if len(files) != RULES:
            errors.append(f"{len(files)} rules instead of {RULES}")
        return len(files), errors


def main():
    root = Path(sys.argv[1])
    examples = json.loads(Path(sys.argv[2]).read_text())
    with Server(SERVER, documented_mapping(root)) as server:
        checks = Checks(root, examples, server, "--queries" in sys.argv)
        rules, errors = checks.run()
    print("\n".join(errors), file=sys.stderr)
    count = sum(len(events) for events in checks.events.values())
    print(f"{rules} rules, {count} examples, {len(errors)} errors")
    sys.exit(bool(errors))


if __name__ == "__main__":
    main()
