"""The official client of anti-captcha.com, unchanged, talking to the service at `sys.argv[1]`."""

from __future__ import annotations

import sys
from typing import Any

import guard

guard.stay_on_this_machine()

from anticaptchaofficial import antinetworking  # noqa: E402
from anticaptchaofficial.geetestproxyless import geetestProxyless  # noqa: E402
from anticaptchaofficial.imagecaptcha import imagecaptcha  # noqa: E402
from anticaptchaofficial.recaptchav2proxyless import recaptchaV2Proxyless  # noqa: E402
from anticaptchaofficial.recaptchav2proxyon import recaptchaV2Proxyon  # noqa: E402
from anticaptchaofficial.recaptchav3proxyless import recaptchaV3Proxyless  # noqa: E402
from anticaptchaofficial.turnstileproxyless import turnstileProxyless  # noqa: E402
from requests.adapters import HTTPAdapter  # noqa: E402

URL = sys.argv[1]
HOME = "https://api.anti-captcha.com"


class Redirecting(HTTPAdapter):
    """The client knows one address only: what it sends there goes to our service."""

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        request.url = URL + request.url.removeprefix(HOME)
        return super().send(request, *args, **kwargs)


antinetworking.session.trust_env = False
antinetworking.session.mount(HOME, Redirecting())


def prepared(solver: Any, key: str = guard.KEY) -> Any:
    solver.set_key(key)
    solver.set_website_url(guard.PAGE)
    solver.set_website_key(guard.SITE_KEY)
    return solver


def solved(solver: Any, *arguments: Any, **more: Any) -> dict[str, Any]:
    solution = solver.solve_and_return_solution(*arguments, **more)
    return {"task_id": solver.task_id, "solution": solution, "error": solver.error_code, "text": solver.err_string}


def v2() -> Any:
    solver = prepared(recaptchaV2Proxyless())
    told = solved(solver)
    return {**told, "reports": [solver.report_incorrect_recaptcha(), solver.report_correct_recaptcha()]}


def v3() -> Any:
    solver = prepared(recaptchaV3Proxyless())
    solver.set_page_action("login")
    solver.set_min_score(0.7)
    return solved(solver)


def with_proxy() -> Any:
    solver = prepared(recaptchaV2Proxyon())
    solver.set_proxy_type("http")
    solver.set_proxy_address("198.51.100.7")
    solver.set_proxy_port(8080)
    solver.set_proxy_login("user")
    solver.set_proxy_password("password")
    return solved(solver)


def image() -> Any:
    solver = prepared(imagecaptcha())
    solver.set_numeric(1)
    return solved(solver, None, body=guard.PNG)


def geetest() -> Any:
    solver = prepared(geetestProxyless())
    solver.set_gt_key("022397c99c9f646f6477822485f30404")
    solver.set_challenge_key("12345678abc90123d45678ef90123a45b")
    return solved(solver)


def unsolvable() -> Any:
    return solved(prepared(turnstileProxyless()))


def wrong_key() -> Any:
    return solved(prepared(recaptchaV2Proxyless(), guard.WRONG_KEY))


def balance() -> Any:
    return prepared(recaptchaV2Proxyless()).get_balance()


guard.report(
    {
        "v2": v2,
        "v3": v3,
        "proxy": with_proxy,
        "image": image,
        "geetest": geetest,
        "unsolvable": unsolvable,
        "wrong key": wrong_key,
        "balance": balance,
    }
)
