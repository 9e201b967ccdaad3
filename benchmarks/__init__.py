"""What the library costs, how fast it is, and how others of its kind fare at the same work.

    python -m benchmarks                      # everything: about 40 minutes
    python -m benchmarks --quick              # a short run: fewer sizes, one run of each
    python -m benchmarks requests pacing      # some parts; --list shows them all
    python -m benchmarks --runs 5 -o DIR      # more repeats; where results and charts go
    python -m benchmarks --docs               # also bring docs/benchmarks.md and its charts up to date
    python -m benchmarks --render FILE        # tables and charts again from an earlier results.json
    python -m benchmarks.profile              # where the CPU of one request, or of a whole job, goes
    python -m benchmarks.scale                # what binds a fleet, by formulae, and a simulation in virtual time

It needs `pip install 'ucaptcha_async[fast,httpx2,report,testing]'`; what is missing is left out and named. The other
libraries (`peers.txt`) go into environments of their own under `.venv-peers/`, made at the first run; without a package
index (or with `--without-peers`) their rows are left out.

How it measures:

* Nothing leaves the machine: the service is `ucaptcha_async.testing` in a process of its own.
* The client under test and the service are pinned to different cores, where the system allows that.
* Each measurement is a process of its own. Those that are compared take turns, and start from another one each round.
* A figure is the median of its runs, with the least and the greatest in brackets. Times of one run are not compared
  with those of another run of the command.
* CPU is `time.process_time()` of the client's process: user and system time of all its threads.
* "Stall" is by how much a 10 ms timer in the client's own event loop came too late, at worst.
* Whatever the client says of itself is checked against the service's books.
* Nothing runs without an end: every process has a time after which it reports how far it came, and stops.

The modules: `harness` (processes, pinning, medians), `child` and `meter` (the measured process; standard library only,
so that they run in the peers' environments), `hand` (what one would write by hand), `peers`, the parts (`request_cost`,
`job`, `headline`, `pacing`, `polling`, `journal`, `memory`, `imports`), `targets`, and `report` and `charts` for what
comes out. Of fleets: `fleet` (real processes), `capacity` (formulae), `virtual_fleet` (simulation), and `scale`.
"""
