"""`python -m tests.support.crashing MOMENT N COMMAND…`: the `vocbeam` command, dying at a point of a transaction.

The process kills itself with SIGKILL when what writes in it (chunks, restated tags, folded dates) reaches MOMENT (a
name of `Failpoint`) for the Nth time.
"""

from __future__ import annotations

import os
import signal
import sys
from functools import partial, partialmethod
from itertools import count

from vocbeam.pipelines import compact
from vocbeam.pipelines.cli import main
from vocbeam.sinks.restate import Restater
from vocbeam.sinks.writer import ChunkWriter, Failpoint


def die_at(moment: str, number: int) -> Failpoint:
    """A failpoint that ends this process when `moment` is reached for the `number`th time."""
    visits = count(1)

    def reach(reached: str) -> None:
        if reached == moment and next(visits) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    return Failpoint(reach)


if __name__ == "__main__":
    failpoint = die_at(sys.argv[1], int(sys.argv[2]))
    for writer in (ChunkWriter, Restater):
        writer.__init__ = partialmethod(writer.__init__, failpoint=failpoint)  # type: ignore[assignment,misc]
    compact.compact = partial(compact.compact, failpoint=failpoint)
    del sys.argv[1:3]
    main()
