"""`powersample watch RUN`: shows the progress of a run that another process drives."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable

from orchestrator.live.watched_run import RunWatcher

LOOK_SECONDS = 0.5


def watch(args: Namespace, sleep: Callable[[float], object] = time.sleep) -> int:
    """Show the run until it is complete or stopped, or until Ctrl-C; with `once` as it is now. Returns 0."""
    watched, said = RunWatcher(args.run), ""
    try:
        while watched.active and watched.driven and not args.once:
            if not said and (said := watched.silence()):
                print(said, file=sys.stderr)
            sleep(LOOK_SECONDS)
            watched.poll()
            watched.progress.refresh()
    except KeyboardInterrupt:
        print(file=sys.stderr)
    if not watched.driven:
        watched.progress.clear_workers()
    if args.once:
        print("\n".join(filter(None, (watched.progress.as_text(), watched.silence()))))
        return 0
    watched.progress.close()
    if not watched.driven and (said := watched.silence()):
        print(said, file=sys.stderr)
    return 0
