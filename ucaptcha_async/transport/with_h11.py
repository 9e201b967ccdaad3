"""The parser of answers that is always there."""

from __future__ import annotations

import re
from typing import Any

import h11

from .parser import MALFORMED, MAX_HEAD, Parser

_LINE_ENDS = re.compile(rb"\r?\n([ \t]|\r?\n)")
"""Where a header goes on in the next line, or a head ends."""

_REQUEST = h11.Request(method="POST", target="/", headers=[("Host", "h"), ("Content-Length", "0")])


class H11Parser(Parser):
    """Reads answers with `h11`."""

    def __init__(self) -> None:
        self._dialogue = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD)
        super().__init__()

    def begin(self) -> None:
        """A request leaves. What it is does not matter to its answer."""
        super().begin()
        self._raw = bytearray()
        if self._dialogue.our_state is h11.DONE:
            self._dialogue.start_next_cycle()
        self._dialogue.send(_REQUEST)
        self._dialogue.send(h11.EndOfMessage())

    def _feed(self, data: bytes) -> None:
        if not self._headed:
            self._raw += data
        try:
            self._dialogue.receive_data(data)
            while not self._complete and self.failure is None:
                event = self._dialogue.next_event()
                if event is h11.NEED_DATA:
                    break
                self._take(event)
        except h11.ProtocolError:
            if data:
                self.failure = MALFORMED
            else:
                self._cut_off()

    def _take(self, event: Any) -> None:
        if isinstance(event, h11.Data):
            self._piece(bytes(event.data))
        elif isinstance(event, h11.EndOfMessage):
            self._complete = True
            left, ended = self._dialogue.trailing_data
            self.extra = bool(left)
            self.reusable = self._dialogue.their_state is h11.DONE and not ended
        elif isinstance(event, h11.InformationalResponse | h11.Response):
            if self._folded():
                self.failure = MALFORMED
                return
            for name, value in event.headers:
                self.on_header(name, value)
            self._head(event.status_code, event.http_version.decode(), reusable=False)
        else:  # the connection was closed
            self._cut_off()

    def _folded(self) -> bool:
        """Whether a header goes on in the next line: h11 allows what the standard took back."""
        heads = self._interim + 1
        for found in _LINE_ENDS.finditer(self._raw):
            if found[1] in (b" ", b"\t"):
                return True
            heads -= 1
            if not heads:
                break
        return False
