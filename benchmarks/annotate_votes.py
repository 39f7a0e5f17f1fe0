"""Many annotators at once: how long a server of `lit-posttrain annotate` takes to acknowledge a decision.

    python benchmarks/annotate_votes.py --votes 2000 --clients 8

Each client decides on one item after another without a pause, far faster than people do. A decision is acknowledged
when it is on the disk. Prints the percentiles, and checks that every acknowledged decision is in the file once, in the
order of its client.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from annotate_server import annotating

from lit_posttrain.data.feedback.record import Decision


@dataclass
class Client:
    """An annotator without a page. first: the number of the first decision. acknowledged: ids in order. seconds: of
    each decision, from request to answer."""

    name: str
    link: str
    first: int = 0
    acknowledged: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def work(self, votes: int) -> None:
        """Decide on up to so many items, or until the server is gone."""
        place = urlsplit(self.link)
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        try:
            connection.request("GET", f"/?{place.query}")
            answer = connection.getresponse()
            answer.read()
            headers = {
                "cookie": str(answer.headers["set-cookie"]).partition(";")[0],
                "origin": f"http://{place.netloc}",
                "content-type": "application/json",
            }
            connection.request("GET", "/api/item", headers=headers)
            said = json.loads(connection.getresponse().read())
            for number in range(self.first, self.first + votes):
                item = said["item"]
                if item is None:
                    return
                body = {"id": f"{self.name}-{number:06}", "item": item["id"], "outcome": "verdict", "seconds": 1.0}
                body |= {"order": item["order"], "ranks": [0, 1], "reason": "the first one is shorter"}
                began = time.perf_counter()
                connection.request("POST", "/api/decision", json.dumps(body), headers)
                answer = connection.getresponse()
                said = json.loads(answer.read())
                assert answer.status == 200, said
                self.seconds.append(time.perf_counter() - began)
                self.acknowledged.append(body["id"])
        except (OSError, http.client.HTTPException):
            return  # the server was killed
        finally:
            connection.close()


def run(clients: Sequence[Client], votes: int) -> list[threading.Thread]:
    """Start all clients."""
    threads = [threading.Thread(target=client.work, args=(votes,)) for client in clients]
    for thread in threads:
        thread.start()
    return threads


def check(clients: Sequence[Client], kept: Sequence[Decision]) -> None:
    """Every acknowledged decision is there, once, in the order of its client; at most one more of each is."""
    ids = [one.id for one in kept]
    assert len(set(ids)) == len(ids), "a decision is there twice"
    assert len({(one.item, one.annotator) for one in kept}) == len(kept), "an item was decided twice by one person"
    for client in clients:
        own = [one for one in ids if one.startswith(f"{client.name}-")]
        assert own[: len(client.acknowledged)] == client.acknowledged, f"{client.name}: lost, or out of order"
        assert len(own) - len(client.acknowledged) <= 1, f"{client.name}: more than the one that was under way"


def rows(count: int) -> list[dict[str, object]]:
    """Items with two responses of some hundred characters."""
    text = "It depends on the **flour**: with more gluten the dough keeps its gas.\n\n1. Knead it.\n2. Let it rest.\n\n"
    return [{"prompt": f"Question {n}?", "responses": [f"{n}: {text}", f"{n}: {text * 3}"]} for n in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--votes", type=int, default=2000, help="Decisions of all clients together.")
    parser.add_argument("--clients", type=int, default=8, help="Annotators who work at the same time.")
    given = parser.parse_args()
    names = [f"client{n}" for n in range(given.clients)]
    with (
        tempfile.TemporaryDirectory() as folder,
        annotating(Path(folder), rows(given.votes), "--annotators", json.dumps(names)) as server,
    ):
        clients = [Client(name, server.links[name]) for name in names]
        began = time.perf_counter()
        for thread in run(clients, given.votes):
            thread.join()
        took = time.perf_counter() - began
        kept = server.decisions()
        check(clients, kept)
    times = sorted(1000 * one for client in clients for one in client.seconds)
    assert len(kept) == len(times) == given.votes, f"{len(kept)} decisions in the file, {len(times)} acknowledged"
    cuts = statistics.quantiles(times, n=100)
    print(f"{len(times)} decisions of {given.clients} clients in {took:.1f} s ({len(times) / took:.0f} a second)")
    print(f"ms per decision: median {cuts[49]:.1f}, p95 {cuts[94]:.1f}, p99 {cuts[98]:.1f}, longest {times[-1]:.1f}")


if __name__ == "__main__":
    main()
