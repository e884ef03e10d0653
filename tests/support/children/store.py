"""A process that works on a file store, for the tests to race or kill: `store.py ROOT ROLE ARGUMENT…`.

Roles:
    create KEY WHO: waits for a line, then tries to create KEY. Prints `True` or `False`.
    count KEY TIMES: waits for a line, then adds one to KEY's `n`, TIMES times.
    rewrite KEY BYTES: writes KEY over and over, each time of one repeated letter, until killed.
    hold PREFIX: acquires the lease on PREFIX and holds it until killed.
    claim RUN: waits for a line, then claims a model version for RUN. Prints it.
"""

from __future__ import annotations

import itertools
import sys
import threading

from shared.records.registry import Registry
from shared.store.files import FileStore
from shared.store.lease import Leases


def main() -> None:
    root, role, *arguments = sys.argv[1:]
    store = FileStore(root)
    if role in {"create", "count", "claim"}:
        say("ready")
        sys.stdin.readline()
    if role == "create":
        key, who = arguments
        say(str(store.create(key, who.encode())))
    elif role == "count":
        key, times = arguments
        for _ in range(int(times)):
            store.update_json(key, lambda value: {"n": value.get("n", 0) + 1})
        say("done")
    elif role == "claim":
        say(str(Registry(store).claim(arguments[0])))
    elif role == "rewrite":
        key, size = arguments
        for number in itertools.count():
            store.put(key, b"abcdefgh"[number % 8 : number % 8 + 1] * int(size))
            if not number:
                say("writing")
    elif role == "hold":
        assert Leases(store, 3600).lease(arguments[0]).acquire()
        say("held")
        threading.Event().wait()


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
