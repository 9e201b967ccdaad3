"""A program that is killed: solves named work with a journal, after taking up what its predecessor left."""

from __future__ import annotations

import sys

import anyio

from ucaptcha_async import AsyncClient, Polling, SQLiteJournal, SubmitUncertainError, Turnstile


def works(count: int) -> list[Turnstile]:
    return [Turnstile(website_url=f"https://example.com/{number}", website_key="0x4AAA") for number in range(count)]


async def main(url: str, journal: str, count: int) -> None:
    """Print `solved KEY ID` or `uncertain KEY` for each piece of work, and `end`."""
    polling = Polling(interval=0.1, first=0.1)
    options = {"base_url": url, "polling": polling, "timeout": 60, "max_in_flight": 10, "request_timeout": 2}
    async with AsyncClient("ucap_crash", journal=SQLiteJournal(journal), **options) as client:
        print("started", flush=True)
        async with client.recover() as outcomes:
            async for outcome in outcomes:
                print("recovered", outcome.key, outcome.task_id, outcome.ok, flush=True)
        async with client.solve_many(works(count), key=lambda task: task.website_url) as outcomes:
            async for outcome in outcomes:
                if outcome.ok:
                    print("solved", outcome.key, outcome.task_id, flush=True)
                elif isinstance(outcome.error, SubmitUncertainError):
                    print("uncertain", outcome.key, flush=True)
                else:
                    print("failed", outcome.key, repr(outcome.error), flush=True)
    print("end", flush=True)


if __name__ == "__main__":
    backend, *arguments = sys.argv[1:]
    anyio.run(main, arguments[0], arguments[1], int(arguments[2]), backend=backend)
