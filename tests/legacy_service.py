"""The older dialect of the family, `/in.php` and `/res.php`, for clients that speak nothing else.

Source: docs/api/legacy/res-php. The page on `/in.php` could not be read: its fields are those of the services that
uCaptcha is compatible with. Whatever goes wrong, the HTTP status is 200.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from urllib.parse import parse_qsl

import attrs

from ucaptcha_async.testing import LocalService
from ucaptcha_async.testing.endpoints import Endpoint, Office
from ucaptcha_async.testing.refusals import RefusalError
from ucaptcha_async.testing.wire import Answer, Scope

JSON = Mapping[str, object]

_METHODS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "userrecaptcha": ("RecaptchaV2Task", {"googlekey": "websiteKey", "min_score": "minScore"}),
    "hcaptcha": ("HCaptchaTask", {"sitekey": "websiteKey"}),
    "turnstile": ("TurnstileTask", {"sitekey": "websiteKey"}),
    "funcaptcha": ("FunCaptchaTask", {"publickey": "websitePublicKey"}),
    "mt_captcha": ("MtCaptchaTask", {"sitekey": "websiteKey"}),
    "friendly_captcha": ("FriendlyCaptchaTask", {"sitekey": "websiteKey"}),
    "yandex": ("YandexCaptchaTask", {"sitekey": "websiteKey"}),
    "tencent": ("TencentTask", {"app_id": "appId"}),
    "geetest": ("GeeTestTask", {"gt": "gt", "challenge": "challenge"}),
    "geetest_v4": ("GeeTestTask", {"captcha_id": "gt"}),
    "base64": ("ImageToTextTask", {"body": "body"}),
    "post": ("ImageToTextTask", {"file": "body"}),
}


def parse_form(scope: Scope, raw: bytes) -> JSON | None:
    """Read the query and the form of a request: one mapping of both."""
    fields: dict[str, object] = dict(_pairs(scope.get("query_string", b"")))
    content_type = dict(scope["headers"]).get(b"content-type", b"")
    if content_type.startswith(b"multipart/form-data"):
        fields.update(_multipart(content_type, raw))
    else:
        fields.update(_pairs(raw))
    return {**fields, "clientKey": fields.pop("key", None), "taskId": fields.get("id")}


def _pairs(text: bytes) -> list[tuple[str, str]]:
    return parse_qsl(text.decode("utf-8", "replace"), keep_blank_values=True)


def _multipart(content_type: bytes, raw: bytes) -> dict[str, object]:
    message = BytesParser(policy=HTTP).parsebytes(b"content-type: " + content_type + b"\r\n\r\n" + raw)
    parts = message.get_payload() if message.is_multipart() else []
    return dict(_part(part) for part in parts if isinstance(part, Message))


def _part(part: Message) -> tuple[str, object]:
    name = str(part.get_param("name", "", header="content-disposition"))
    content = part.get_payload(decode=True)
    data = content if isinstance(content, bytes) else b""
    return name, base64.b64encode(data).decode() if part.get_filename() else data.decode("utf-8", "replace")


class LegacyApi:
    """The two scripts of the older dialect.

    Args:
        office: What the endpoints work with.
    """

    def __init__(self, office: Office) -> None:
        self._office = office
        self._actions = {
            "get": self._get,
            "getbalance": self._get_balance,
            "reportbad": self._report,
            "reportgood": self._report,
        }

    def endpoints(self) -> dict[str, Endpoint]:
        """Return the endpoints by name."""
        handlers = {"in.php": self._in, "res.php": self._res}
        return {
            name: Endpoint(run=run, parse=parse_form, refuse=self.refuse, methods=("GET", "POST"))
            for name, run in handlers.items()
        }

    def refuse(self, body: JSON | None, code: str, description: str | None = None) -> Answer:
        """Make the answer for an error code."""
        return _say(body or {}, 0, code, code)

    async def _in(self, form: JSON, now: float) -> Answer:
        request: dict[str, object] = {"clientKey": form["clientKey"], "task": task_of(form)}
        if form.get("pingback"):
            request["callbackUrl"] = form["pingback"]
        task = await self._office.take(request, now)
        answer = _say(form, 1, task.id, f"OK|{task.id}")
        answer.task_id = task.id
        return answer

    async def _res(self, form: JSON, now: float) -> Answer:
        action = form.get("action")
        if not action:
            raise RefusalError("ERROR_EMPTY_ACTION")
        if action not in self._actions:
            raise RefusalError("ERROR_BAD_PARAMETERS", "action is not known.")
        return self._actions[str(action)](form, now)

    def _get(self, form: JSON, now: float) -> Answer:
        task, status = self._office.ask(form, now)
        if status not in ("ready", "failed"):
            return _say(form, 0, "CAPCHA_NOT_READY", "CAPCHA_NOT_READY")
        code = task.error_code
        answer = _say(form, 1, task.code, f"OK|{task.code}") if code is None else _say(form, 0, code, code)
        answer.delivers = task
        return answer

    def _get_balance(self, form: JSON, now: float) -> Answer:
        desk = self._office.desk
        balance = f"{desk.balance(desk.key_of(form)):.4f}"
        return _say(form, 1, balance, balance)

    def _report(self, form: JSON, now: float) -> Answer:
        desk = self._office.desk
        task = desk.find(desk.key_of(form), form, now)
        desk.feedback(task, {"invalid": form["action"] == "reportbad", "message": str(form["action"])})
        return _say(form, 1, "OK_REPORT_RECORDED", "OK_REPORT_RECORDED")


@attrs.define(eq=False, kw_only=True)
class LegacyService(LocalService):
    """A local service that speaks the older dialect, too."""

    def more_endpoints(self, office: Office) -> Mapping[str, Endpoint]:
        """Return the two scripts."""
        return LegacyApi(office).endpoints()


def task_of(form: JSON) -> dict[str, object]:
    """Translate the fields of `/in.php` into a `task` object."""
    method = form.get("method", "post")
    if method not in _METHODS:
        raise RefusalError("ERROR_BAD_PARAMETERS", "method is not known.")
    name, names = _METHODS[str(method)]
    if method == "userrecaptcha":
        name = _recaptcha(form)
    task = {new: form[old] for old, new in names.items() if old in form}
    if "minScore" in task:
        task["minScore"] = _number(task["minScore"])
    if method == "geetest_v4":
        task["version"] = 4
    if "pageurl" in form:
        task["websiteURL"] = form["pageurl"]
    return {"type": _with_proxy(name, form, task), **task}


def _recaptcha(form: JSON) -> str:
    version = "V3" if form.get("version") == "v3" else "V2"
    return f"Recaptcha{version}{'Enterprise' if form.get('enterprise') == '1' else ''}Task"


def _with_proxy(name: str, form: JSON, task: dict[str, object]) -> str:
    if form.get("proxy"):
        task |= {"proxy": form["proxy"], "proxyType": str(form.get("proxytype", "")).lower()}
        return name
    return name if name == "ImageToTextTask" else f"{name}Proxyless"


def _number(text: object) -> object:
    try:
        return float(str(text))
    except ValueError:
        return text


def _say(form: JSON, status: int, request: str, text: str) -> Answer:
    cors = (("access-control-allow-origin", "*"),) if form.get("header_acao") == "1" else ()
    if form.get("json") == "1":
        return Answer(200, {"status": status, "request": request}, headers=cors)
    return Answer(200, body=text.encode(), content_type="text/plain; charset=utf-8", headers=cors)
