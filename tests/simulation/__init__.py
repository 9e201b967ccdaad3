"""Client, network and service in one virtual world, everything drawn from one seed.

`python -m tests.simulation --seed 7 --backend trio` replays one world, `--worlds 5000` runs many.

The *network* is simulated, not the client: its connections are pipes that carry bytes to an h11 server, which feeds the
local service. So httpx, the parser, the pool and the proof of sending are inside the world, and losses fall between
bytes.
"""
