"""The faster parser of answers."""

from __future__ import annotations

import importlib
from typing import Any

from .parser import MALFORMED, Parser

httptools: Any = importlib.import_module("httptools")


class HttptoolsParser(Parser):
    """Reads answers with `httptools`."""

    def __init__(self) -> None:
        super().__init__()
        self._parser = httptools.HttpResponseParser(self)

    def _feed(self, data: bytes) -> None:
        if not data:
            return self._end()
        try:
            # The answer must end with the last byte. If it ends before, more came than one answer.
            if len(data) > 1:
                self._parser.feed_data(data[:-1])
            if self._complete:
                self.extra = True
            else:
                self._parser.feed_data(data[-1:])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            if self._complete:
                self.extra = True
            else:
                self.failure = self.failure or MALFORMED
        return None

    def _end(self) -> None:
        if self._headed and not self.headers.keys() & {"content-length", "transfer-encoding"}:
            self._complete = True
        else:
            self._cut_off()

    def on_headers_complete(self) -> None:
        """A callback of the parser."""
        if not self._complete:
            parser = self._parser
            self._head(parser.get_status_code(), parser.get_http_version(), reusable=parser.should_keep_alive())

    def on_body(self, data: bytes) -> None:
        """A callback of the parser."""
        self._piece(data)

    def on_message_complete(self) -> None:
        """A callback of the parser: an answer is over; an interim one is followed by another."""
        self._complete = self._complete or self._headed
