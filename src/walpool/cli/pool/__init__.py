"""The worker pool: several processes append the lines of files, or of stdin, to one log, each line exactly once.

`lines` cuts input into runs of lines, `ledger` knows which lines a log holds already, `crew` is the parent that hands
out parcels of runs and replaces workers that die, `worker` is the process that appends them, `load` is all of it in
the order that makes it exact.

Holds, and why a line is appended exactly once whatever is killed:
- One loading at a time: the parent and all of its workers share one lock description on `ingest.lock`, so the lock is
  free only when the last of them is gone, and nobody appends behind the back of a command that was started again.
- What a process published stays in the log when it is killed, and what it had not published never appears later:
  the parent keeps the log open, so nobody recovers it meanwhile.
- So the log itself says which lines are in. It is read when a loading starts, and again when a worker has died and is
  reaped; only what is missing is handed out.
"""
