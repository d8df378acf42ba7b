"""A server that searches as Elastic does: osmem-server, an imitation of OpenSearch."""

import json
import subprocess
from urllib.error import HTTPError
from urllib.request import Request, urlopen


def documented_mapping(root):
    """Returns the mapping of the index template in docs/siem/elastic.md."""
    page = (root / "docs/siem/elastic.md").read_text()
    template = page.split("PUT _index_template/ai-agent\n")[1].split("```")[0]
    return json.loads(template)["template"]["mappings"]


class Server:
    """A server on a free port of the loopback interface, stopped at the end of a `with`."""

    def __init__(self, program, mapping):
        self.mapping = mapping
        # The server stops when its standard input is closed.
        self.process = subprocess.Popen([program, "-addr", "127.0.0.1:0", "-no-ja"],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.url = json.loads(self.process.stdout.readline())["url"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def found(self, index, events, query):
        """Stores the events in a new index, and returns the numbers of those that a query finds."""
        self.call("PUT", f"/{index}", json.dumps({"mappings": self.mapping}))
        lines = [json.dumps(it) for number, event in enumerate(events)
                 for it in ({"create": {"_id": str(number)}}, event)]
        stored = self.call("POST", f"/{index}/_bulk?refresh=true", "\n".join(lines) + "\n")
        if stored["errors"]:
            raise ValueError(f"events were refused: {stored}")
        search = {"size": len(events), "query": {"query_string": {"query": query, "analyze_wildcard": True}}}
        hits = self.call("POST", f"/{index}/_search", json.dumps(search))["hits"]["hits"]
        return {int(hit["_id"]) for hit in hits}

    def call(self, method, path, body):
        request = Request(self.url + path, body.encode(), {"Content-Type": "application/json"}, method=method)
        try:
            with urlopen(request, timeout=60) as response:
                return json.load(response)
        except HTTPError as error:
            raise ValueError(f"{method} {path}: {error.read().decode()}") from error
