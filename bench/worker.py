"""A contender's own process: it answers one request after the other.

    python -m quantmm.bench.worker SOCKET

SOCKET is the number of an inherited socket. The first request holds a contender and a job, and the
answer is what there is to say of it; each further one asks for a turn. What fails is answered as
{"error": reason}. When the other side is gone, the process ends.
"""

from __future__ import annotations

import json
import sys
from multiprocessing.connection import Connection
from typing import Any

from ..processes import end_with_parent
from .contenders import Contender, build, reason
from .contenders.job import Job, Turns


def serve(connection: Connection) -> None:
    """Answer until the other side is gone."""
    ready: Turns | None = None
    while True:
        try:
            request = json.loads(connection.recv_bytes())
        except EOFError:
            return
        answer: Any
        try:
            if ready is None:
                ready = build(Contender(**request["contender"]), Job.from_dict(request["job"]))
                answer = ready.about
            else:
                answer = ready.turn()
        except Exception as error:
            answer = {"error": reason(error)}
        connection.send_bytes(json.dumps(answer).encode())


if __name__ == "__main__":
    end_with_parent()
    serve(Connection(int(sys.argv[1])))
