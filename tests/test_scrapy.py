"""The examples of docs/how-to/in-scrapy.md in a crawl: real Scrapy, in a process of its own, against a site here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.helpers import KEY
from ucaptcha_async.testing import running_service

pytest.importorskip("scrapy", exc_type=ImportError)

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "in-scrapy.md"
GATE = b'<title>Are you human?</title><div class="cf-turnstile" data-sitekey="0x4AAAAAAADnPIDROrmt1Wwj"></div>'

CRAWL = """
if __name__ == "__main__":
    import sys
    from scrapy.crawler import CrawlerProcess

    StatementsSpider.start_urls = [sys.argv[1]]
    process = CrawlerProcess({"FEEDS": {sys.argv[2]: {"format": "jsonlines"}}, "TELNETCONSOLE_ENABLED": False})
    process.crawl(StatementsSpider)
    process.start()
"""


@contextmanager
def gated_site() -> Iterator[tuple[str, list[str]]]:
    """A site of one page that wants a token, and the tokens that it was sent."""
    tokens: list[str] = []

    class Site(BaseHTTPRequestHandler):
        def _page(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self._page(GATE)

        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            tokens.extend(form["cf-turnstile-response"])
            self._page(b"<title>Statements</title>")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/statements", tokens
        finally:
            server.shutdown()
            thread.join()


def test_a_crawl(tmp_path: Path) -> None:
    """The page's spider meets a CAPTCHA, has it solved, and reads what is behind it."""
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (tmp_path / "crawl.py").write_text("\n".join(examples) + CRAWL)
    items = tmp_path / "items.jsonl"
    with gated_site() as (url, tokens), running_service(solve_time=0.3) as service:
        environment = {**os.environ, "UCAPTCHA_API_KEY": KEY, "UCAPTCHA_BASE_URL": service.url}
        command = [sys.executable, "crawl.py", url, str(items)]
        crawl = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=90)
        books = service.books()

    assert 0 == crawl.returncode, crawl.stderr
    assert [{"page": url, "title": "Statements"}] == [json.loads(line) for line in items.read_text().splitlines()]
    assert (1, 1, 1) == (books["accepted"], books["delivered"], len(tokens))
    assert "CAPTCHAs: {" in crawl.stderr
    assert tokens[0] not in crawl.stderr
    assert KEY not in crawl.stderr
