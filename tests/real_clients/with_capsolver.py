"""The client python3-capsolver, unchanged, talking to the service at `sys.argv[1]`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import guard

guard.stay_on_this_machine()

from python3_capsolver.cloudflare import Cloudflare  # noqa: E402
from python3_capsolver.control import Control  # noqa: E402
from python3_capsolver.core import aio_captcha_instrument, base, const, sio_captcha_instrument  # noqa: E402
from python3_capsolver.core.captcha_instrument import FileInstrument  # noqa: E402
from python3_capsolver.core.enum import CaptchaTypeEnm  # noqa: E402
from python3_capsolver.gee_test import GeeTest  # noqa: E402
from python3_capsolver.image_to_text import ImageToText  # noqa: E402
from python3_capsolver.recaptcha import ReCaptcha  # noqa: E402

URL = sys.argv[1]
for module in (const, base, sio_captcha_instrument, aio_captcha_instrument):
    module.REQUEST_URL = URL

PAGE = {"websiteURL": guard.PAGE, "websiteKey": guard.SITE_KEY}
GEETEST = {"websiteURL": guard.PAGE, "gt": "022397c99c9f646f64", "challenge": "12345678abc"}


def solver(kind: Any, captcha_type: CaptchaTypeEnm | None = None, key: str = guard.KEY) -> Any:
    chosen = {} if captcha_type is None else {"captcha_type": captcha_type}
    # Whole seconds are what it is made for; it sleeps for fractions as well.
    return kind(api_key=key, sleep_time=0.2, request_url=URL, **chosen)


def recaptcha(captcha_type: CaptchaTypeEnm, key: str = guard.KEY, **more: Any) -> Any:
    return lambda: solver(ReCaptcha, captcha_type, key).captcha_handler({**PAGE, **more})


def asynchronous() -> Any:
    return asyncio.run(solver(ReCaptcha, CaptchaTypeEnm.ReCaptchaV2TaskProxyLess).aio_captcha_handler(PAGE))


def image() -> Any:
    body = FileInstrument().file_processing(captcha_base64=guard.PNG)
    return solver(ImageToText).captcha_handler({"body": body, "module": "common"})


def unsolvable() -> Any:
    return solver(Cloudflare, CaptchaTypeEnm.AntiTurnstileTaskProxyLess).captcha_handler(PAGE)


def by_hand() -> Any:
    control = Control(api_key=guard.KEY)
    created = control.create_task({"type": "ReCaptchaV2TaskProxyLess", **PAGE})
    return {"created": created, "result": control.get_task_result(created["taskId"])}


guard.report(
    {
        "v2": recaptcha(CaptchaTypeEnm.ReCaptchaV2TaskProxyLess),
        "v2 async": asynchronous,
        "v3": recaptcha(CaptchaTypeEnm.ReCaptchaV3TaskProxyLess, pageAction="login", minScore=0.7),
        "proxy": recaptcha(CaptchaTypeEnm.ReCaptchaV2Task, proxy="http://user:password@198.51.100.7:8080"),
        "image": image,
        "geetest": lambda: solver(GeeTest, CaptchaTypeEnm.GeeTestTaskProxyLess).captcha_handler(GEETEST),
        "unsolvable": unsolvable,
        "wrong key": recaptcha(CaptchaTypeEnm.ReCaptchaV2TaskProxyLess, guard.WRONG_KEY),
        "balance": lambda: Control(api_key=guard.KEY).get_balance(),
        "balance async": lambda: asyncio.run(Control(api_key=guard.KEY).aio_get_balance()),
        "by hand": by_hand,
    }
)
