"""A world's record, sorted for the checks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping

from ucaptcha_async import TaskNotFoundError
from ucaptcha_async.events import Failed, Solved, TokenDelayed, Uncertain
from ucaptcha_async.journal import State
from ucaptcha_async.testing import TaskRecord

from .calls import Call, Heard
from .network import Request
from .world import World


class Books:
    """A world's record, sorted for the checks."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.tasks = world.tasks
        world.service.books.settle()
        self.requests = world.network.requests
        self.submits: dict[str, list[Request]] = defaultdict(list)
        self.by_process: dict[int, list[Request]] = defaultdict(list)
        self.by_limiter: dict[int, list[Request]] = defaultdict(list)
        for request in self.requests:
            self.by_limiter[0 if world.limiter is not None else request.process].append(request)
            self.by_process[request.process].append(request)
            if request.path == "/createTask" and request.work is not None:
                self.submits[request.work].append(request)
        self.calls: dict[str, list[Call]] = defaultdict(list)
        for call in world.calls:
            self.calls[call.work.name].append(call)
        # What a duplicate on the way has bought, nobody can know of.
        self.twins = {request.twin for request in self.requests if request.twin is not None}
        self.accepted: dict[str, list[str]] = defaultdict(list)
        self.owners: dict[str, TaskRecord] = {}
        for task in self.tasks.values():
            self.owners[json.dumps(task.solution, sort_keys=True)] = task
            if task.id not in self.twins:
                self.accepted[work_of(task.website_url)].append(task.id)
        self.buyers = {r.accepted: r.process for r in self.requests if r.accepted is not None}
        self.nameless_answers = {r.accepted for r in self.requests if r.answered and not r.named}
        self.solved = [
            (heard.process, heard.at, self._solved_id(heard))
            for heard in world.heard
            if isinstance(heard.event, Solved)
        ]
        self.known = self._known()
        self.deaths = [process.died_at for process in self.world.processes if process.died_at is not None]

    def _solved_id(self, heard: Heard) -> str | None:
        """The task that was solved; an answer that came at once may have come without its id."""
        if heard.event.task_id is not None:
            return str(heard.event.task_id)
        if heard.work is None:
            return None
        answers = [
            request
            for request in self.submits[heard.work]
            if request.process == heard.process and request.answered and (request.heard_at or 0.0) <= heard.at
        ]
        latest = max(answers, key=lambda request: (not request.named, request.heard_at), default=None)
        return None if latest is None else latest.accepted

    def _known(self) -> set[str]:
        """The tasks that somebody who can act on it was told of."""
        known = {str(entry.task_id) for entry in self.world.entries if entry.task_id is not None}
        for process in self.world.processes:
            known.update(map(str, process.abandoned))
        for call in self.world.calls:
            known |= call.ids
        known |= {str(heard.event.task_id) for heard in self.world.heard if isinstance(heard.event, TokenDelayed)}
        return known | {task_id for _, _, task_id in self.solved if task_id is not None}

    def uncertain(self, work: str) -> int:
        """How many submits of a work were reported to be of unknown fate."""
        if not self.plan.journal:
            heard = (heard for heard in self.world.heard if isinstance(heard.event, Uncertain))
            return sum(each.work == work for each in heard)
        open_or_given_up = (State.UNCERTAIN, State.INTENT, State.FORGOTTEN)
        rows = [entry for entry in self.world.entries if self.world.rows.get(entry.submit_id) == work]
        named = [h for h in self.world.heard if isinstance(h.event, Uncertain) and h.event.task_id is not None]
        told = sum(heard.work == work for heard in named)
        return told + sum(entry.state in open_or_given_up and entry.task_id is None for entry in rows)

    def nameless(self, work: str) -> int:
        """How many tasks of a work are known to be solved, by the journal or by the user, and not by their ids."""
        rows = [entry for entry in self.world.entries if self.world.rows.get(entry.submit_id) == work]
        solutions = [call.solution for call in self.calls[work] if call.solution is not None]
        return max(
            sum(entry.state is State.SOLVED and entry.task_id is None for entry in rows),
            sum(solution.task_id is None for solution in solutions),
        )

    def owner(self, solution: Mapping[str, object]) -> TaskRecord | None:
        """The task that the service gave this solution for. No two have the same."""
        return self.owners.get(json.dumps(dict(solution), sort_keys=True))

    def unrefunded(self, work: str) -> list[str]:
        """The tasks of a work that were paid for and not refunded."""
        return [task_id for task_id in self.accepted[work] if not self.tasks[task_id].refunded]

    def gone(self, work: str) -> int:
        """How often somebody was told that the task of a work is no longer known."""
        told = sum(isinstance(call.error, TaskNotFoundError) for call in self.calls[work])
        rows = [entry for entry in self.world.entries if self.world.rows.get(entry.submit_id) == work]
        kept = {str(entry.task_id) for entry in rows if entry.error_code == "ERROR_WRONG_CAPTCHA_ID"}
        # Whoever recovers a row hears it of no work; if the work is submitted again then, the row says so no more.
        failed = (heard.event for heard in self.world.heard if heard.work is None and isinstance(heard.event, Failed))
        heard = {str(event.task_id) for event in failed if isinstance(event.error, TaskNotFoundError)}
        return told + len(kept | heard.intersection(map(str, self.accepted[work])))


def work_of(url: str | None) -> str:
    return (url or "").rpartition("/")[2]
