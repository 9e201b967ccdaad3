"""The official client of CapMonster Cloud, unchanged, talking to the service at `sys.argv[1]`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import guard

guard.stay_on_this_machine()

from capmonstercloudclient import CapMonsterClient, ClientOptions  # noqa: E402
from capmonstercloudclient.requests import (  # noqa: E402
    GeetestRequest,
    ImageToTextRequest,
    RecaptchaV2Request,
    RecaptchaV3ProxylessRequest,
    TurnstileRequest,
)
from capmonstercloudclient.requests.proxy_info import ProxyInfo  # noqa: E402

URL = sys.argv[1]

PROXY = ProxyInfo(
    proxyType="http", proxyAddress="198.51.100.7", proxyPort=8080, proxyLogin="user", proxyPassword="password"
)
V2 = RecaptchaV2Request(websiteUrl=guard.PAGE, websiteKey=guard.SITE_KEY)


def client(key: str = guard.KEY) -> CapMonsterClient:
    return CapMonsterClient(ClientOptions(api_key=key, service_url=URL))


def solving(request: Any, key: str = guard.KEY) -> Any:
    return lambda: {"solution": asyncio.run(client(key).solve_captcha(request))}


guard.report(
    {
        "v2": solving(V2),
        "v3": solving(
            RecaptchaV3ProxylessRequest(
                websiteUrl=guard.PAGE, websiteKey=guard.SITE_KEY, minScore=0.7, pageAction="login"
            )
        ),
        "proxy": solving(RecaptchaV2Request(websiteUrl=guard.PAGE, websiteKey=guard.SITE_KEY, proxy=PROXY)),
        "image": solving(ImageToTextRequest(image_bytes=guard.PNG, numeric=1)),
        "geetest": solving(GeetestRequest(websiteUrl=guard.PAGE, gt="022397c99c9f646f64", challenge="12345678abc")),
        "unsolvable": solving(TurnstileRequest(websiteURL=guard.PAGE, websiteKey=guard.SITE_KEY)),
        "wrong key": solving(V2, guard.WRONG_KEY),
        "balance": lambda: asyncio.run(client().get_balance()),
    }
)
