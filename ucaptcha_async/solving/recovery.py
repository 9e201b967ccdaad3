"""Taking up what an earlier process left in the journal."""

from __future__ import annotations

from collections.abc import AsyncIterator

from ucaptcha_async.errors import ConfigurationError, SubmitUncertainError
from ucaptcha_async.journal import Entry, Journal
from ucaptcha_async.results import Solution
from ucaptcha_async.tasks import Task

from .job import Job, Options, within
from .session import Engine, Walk
from .stream import Outcomes


def recover(engine: Engine, options: Options, width: int) -> Outcomes[Entry, Solution]:
    """The outcomes of all open entries of this account that nobody alive works on."""
    if engine.journal is None:
        raise ConfigurationError("recover needs a client with a journal", field="journal")

    async def one(entry: Entry, walk: Walk) -> Solution:
        return await _recovered(engine, entry, walk, options.timeout)

    entries = _open(engine.journal, engine.account)
    return Outcomes(entries, one, _walk, lambda entry: Task(entry.type), width, engine.unread)


async def _open(journal: Journal, account: str) -> AsyncIterator[Entry]:
    for entry in await journal.open_entries(account):
        taken = await journal.take_up(entry)
        if taken is not None:
            yield taken


def _walk(entry: Entry) -> Walk:
    return Walk(entry.type, entry.key, phase="wait", task_id=entry.task_id)


async def _recovered(engine: Engine, entry: Entry, walk: Walk, timeout: float) -> Solution:
    if entry.task_id is None:
        if engine.journal is not None:
            await engine.written(walk, engine.journal.uncertain(entry.submit_id))
        raise SubmitUncertainError("an earlier process submitted this and did not learn whether it was accepted")
    job = Job(engine, walk, Task, None, timeout)
    job._ticket.row = entry.submit_id
    return await within(engine, walk, timeout, job.finish)
