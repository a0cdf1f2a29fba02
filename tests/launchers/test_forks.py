"""Processes that are forked from one which has read what they need."""

import os
import subprocess
import sys

WITH_WHAT_IS_READ = """
import os
from domainbed.launchers import forks
run = "import os, torch; from domainbed.backbones import read_clip as read; " \
    "os._exit(10 * read.cache_info().currsize + torch.get_num_threads())"
forks.start_server(["true", os.environ["RUN"]])
print(forks.wait(forks.start(exec, run)), forks.FIRST in os.environ)
"""


def test_a_run_starts_with_what_the_server_has_read():
    """And with one thread: those of a process are not in its children."""
    run = "python -m domainbed.scripts.train --dataset EmojiDG --algorithm LFA"
    ended = subprocess.run(
        [sys.executable, "-c", WITH_WHAT_IS_READ],
        env=os.environ | {"RUN": run, "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
    )
    assert ended.stdout == "11 False\n", ended.stderr


OF_MANY_THREADS = """
import os
from concurrent.futures import ThreadPoolExecutor
from domainbed.launchers import forks
forks.start_server([])
with ThreadPoolExecutor(8) as pool:
    run = lambda i: forks.wait(forks.start(os._exit, i))
    print(*pool.map(run, range(120)))
"""


def test_each_thread_hears_how_its_own_process_ended():
    """One thread's start reads the statuses of all processes, each to be read once."""
    words = [sys.executable, "-c", OF_MANY_THREADS]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.stdout.split() == [str(i) for i in range(120)], ended.stderr


UNTIL = """
import time
from domainbed.launchers import forks
forks.start_server([])
long, short = forks.start(time.sleep, 3600), forks.start(time.sleep, 0)
hour = time.monotonic() + 3600
print(forks.wait(short, hour), forks.wait(long, time.monotonic()), long.is_alive())
"""


def test_what_is_not_done_in_time_is_told_to_end():
    words = [sys.executable, "-c", UNTIL]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert ended.stdout == "0 None False\n", ended.stderr
