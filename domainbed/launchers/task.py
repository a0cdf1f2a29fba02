"""Begin a Slurm task: signals wait from its first moment until it can answer them.

    python task.py WORDS

goes on as `python WORDS` with the signals blocked, which lasts over exec: what Slurm
sends while modules are imported is not lost, it comes when `slurm.Task` lets it. It
imports nothing, since it has to be quicker than any signal.
"""

import os
import signal
import sys

WAITING = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}

if __name__ == "__main__":
    signal.pthread_sigmask(signal.SIG_BLOCK, WAITING)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
