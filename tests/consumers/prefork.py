"""A pre-forked service, as gunicorn runs one that is loaded before the fork: a parent and workers, each with threads.

    python -m tests.consumers.prefork KAFKA PREFIX WORKERS

Guard and publisher are made, and used, in the parent. Each process says a line of JSON on standard output when its
first checks are answered, and one when it has seen the session `later` refused; then it closes a session of its own and
ends in the ordinary way, without stopping anything.
"""

import json
import logging
import os
import sys
import threading
import time

from lapse.consumers import SyncActivityPublisher, SyncGuard, session_reference

THREADS = 4
ENDED, LATER, LIVE = (session_reference(name) for name in ("ended", "later", "live"))


def _say(**line: object) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")  # at once and whole, whoever else writes


def _serve(name: str, guard: SyncGuard, publisher: SyncActivityPublisher) -> None:
    """What one process does: its threads ask at once, and go on until they have seen the later revocation."""
    first: list[bool] = []
    slowest: list[float] = []

    def request(thread: int) -> None:
        first.append(guard.check(ENDED).allowed or not guard.check(LIVE).allowed)
        publisher.touched(session_reference(f"{name}-{thread}"), f"u-{thread}")
        slow = 0.0
        until = time.monotonic() + 60
        while guard.check(LATER).allowed and time.monotonic() < until:
            began = time.thread_time()
            guard.check(LIVE)
            slow = max(slow, time.thread_time() - began)
            time.sleep(0.002)
        slowest.append(slow)

    threads = [threading.Thread(target=request, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    while len(first) < THREADS:
        time.sleep(0.002)
    _say(name=name, pid=os.getpid(), wrong=any(first), fresh=guard.fresh)
    for thread in threads:
        thread.join()
    publisher.closed(session_reference(f"{name}-0"), "u-0")
    _say(name=name, saw=not guard.check(LATER).allowed, slowest_s=max(slowest), dropped=publisher.stats.dropped)


def main(kafka: str, prefix: str, workers: int) -> None:
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("lapse.consumers").setLevel(logging.WARNING)  # what it says is in the test's failure
    guard = SyncGuard(kafka, service="shop", prefix=prefix, ready_timeout_s=60.0)
    publisher = SyncActivityPublisher(kafka, service="shop", prefix=prefix)
    guard.check(LIVE)
    publisher.started(session_reference("parent-login"), "u-0")
    children = []
    for number in range(workers):
        child = os.fork()
        if child == 0:
            _serve(f"worker-{number}", guard, publisher)
            return
        children.append(child)
    _serve("parent", guard, publisher)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    _say(name="all", codes=codes)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
