"""Client, network and service in one virtual world, everything drawn from one seed.

`python -m tests.simulation --seed 7 --backend trio` replays one world, `--worlds 5000` runs many.

The *network* is simulated, not httpx: a backend below httpcore carries bytes to an h11 server that feeds the local
service. So httpx, h11, the lanes and the proof of sending are inside the world, and losses fall between bytes.
"""
