"""May the proxy pass it on? The whole sidecar but for server and broker: the feed is in memory, time is set."""

from pathlib import Path

import orjson
import pytest
from joserfc.jwk import ECKey

from lapse.consumers import session_reference

from tests.consumers.sidecar.support import Asking, bearer, claims, config, key_set_file, signed

COOKIE = (b"cookie", b"theme=dark; sid=the-cookie; other=x")
SUBJECT = (b"x-auth-subject", "ana é".encode())
REFERENCE = session_reference("the-cookie")


def _told_by_headers() -> Asking:
    return Asking(config(subject_header="X-Auth-Subject", tenant_header="X-Auth-Tenant", start_header="X-Auth-Start"))


async def test_a_live_session_passes_and_is_touched() -> None:
    asking = _told_by_headers()
    assert await asking.ask(COOKIE, SUBJECT, (b"x-auth-tenant", b"acme")) == "passed"
    (touch,) = asking.touches()
    assert (touch.session, touch.subject, touch.tenant, touch.service) == (REFERENCE, "ana é", "acme", "test")


async def test_an_ended_session_is_refused_with_its_cause_and_is_not_touched() -> None:
    asking = _told_by_headers()
    ended = asking.feed.end(REFERENCE)
    answer = await asking.sidecar.answer("GET", b"/check", [COOKIE, SUBJECT])
    problem = orjson.loads(bytes(answer.body))
    assert (answer.status_code, answer.headers["x-lapse-cause"]) == (401, "idle")
    assert (problem["type"], problem["cause"], problem["due_at"]) == ("urn:lapse:session-ended", "idle", ended.due_at)
    assert answer.headers["www-authenticate"] == 'Lapse realm="session"'
    assert not asking.touches()


async def test_the_estates_key_makes_the_reference() -> None:
    asking = Asking(config(reference_key=b"estate key"))
    asking.feed.end(session_reference("the-cookie", b"estate key"))
    assert await asking.ask(COOKIE) == "idle"


async def test_background_polling_is_checked_and_is_no_touch() -> None:
    asking = _told_by_headers()
    assert await asking.ask(COOKIE, SUBJECT, (b"x-lapse-background", b"1")) == "passed"
    assert not asking.touches()
    asking.feed.end(REFERENCE)
    assert await asking.ask(COOKIE, SUBJECT, (b"x-lapse-background", b"1")) == "idle"


async def test_without_a_subject_it_is_checked_and_the_missing_touch_is_counted() -> None:
    asking = Asking()
    assert await asking.ask(COOKIE) == "passed"
    assert not asking.touches()
    assert b"lapse_sidecar_touches_without_subject_total 1.0" in asking.sidecar.metrics.text()


async def test_a_trusted_start_lets_a_subjects_revocation_act_at_once() -> None:
    asking = _told_by_headers()
    asking.feed.revoke(subject="ana é")
    assert await asking.ask(COOKIE, SUBJECT, (b"x-auth-start", b"1700000000000")) == "revoked"
    assert await asking.ask(COOKIE, SUBJECT, (b"x-auth-start", b"1900000000000")) == "passed"
    assert await asking.ask(COOKIE, SUBJECT, (b"x-auth-start", b"yesterday")) == "invalid"
    assert await asking.ask(COOKIE, SUBJECT, SUBJECT) == "invalid", "one of them is not the proxy's"


async def test_nobodys_request_passes_unless_a_session_is_required() -> None:
    assert await Asking().ask() == "nobody's"
    assert await Asking().ask((b"cookie", b"sid=; sid2=x")) == "nobody's"
    strict = Asking(config(require_session=True, open_routes=("/login",)))
    assert await strict.ask() == "missing"
    assert await strict.ask((b"x-original-uri", b"/login?next=/")) == "nobody's"
    assert await strict.ask((b"x-original-uri", b"/login"), path=b"/check/pay") == "missing"
    assert await strict.ask(path=b"/check/login/now") == "nobody's"
    preflight = ((b"origin", b"https://a"), (b"access-control-request-method", b"PUT"))
    assert await strict.ask(*preflight, path=b"/check/pay", method="OPTIONS") == "nobody's"
    assert await strict.ask(*preflight, path=b"/check/pay", method="PUT") == "missing"


async def test_a_stale_guard_follows_on_stale_by_route() -> None:
    asking = Asking(config(stale_routes={"/pay": "deny"}))
    asking.feed.processor_runs = False
    asking.feed.advance(10_000)
    assert await asking.ask(COOKIE, (b"x-forwarded-uri", b"/read")) == "stale"
    assert await asking.ask(COOKIE, (b"x-forwarded-uri", b"/pay/1")) == "unverified"
    assert await asking.ask(COOKIE, path=b"/check/x/../pay") == "unverified"
    assert await asking.ask(COOKIE) == "unverified", "which path it is nobody says"
    strict = Asking(config(on_stale="deny", stale_routes={"/assets": "allow"}))
    strict.feed.processor_runs = False
    strict.feed.advance(10_000)
    assert await strict.ask(COOKIE, path=b"/check/read") == "unverified"
    assert await strict.ask(COOKIE, path=b"/check/assets/a.css") == "stale"
    assert strict.sidecar.why_not_ready() is not None


@pytest.mark.parametrize(
    ("form", "cookie", "expected"),
    [
        ("plain", b"sid=the-cookie", "idle"),
        ("plain", b"sid = the-cookie ;", "idle"),
        ("plain", b'sid="the-cookie"', "invalid"),
        ("plain", b"sid=the%2dcookie", "invalid"),
        ("percent", b"sid=the%2dcookie", "idle"),
        ("percent", b"sid=%22the-cookie%22", "invalid"),
        ("raw", b"sid=the%2dcookie", "passed"),
        ("plain", b"SID=the-cookie", "nobody's"),
        ("plain", "sid=the-cookie\xa0".encode("latin-1"), "idle"),
        ("plain", b"sid=the-cookie theme=dark", "invalid"),
        ("plain", b"sid=the-cookie,theme=dark", "invalid"),
        ("percent", b"sid=the-cookie,theme=dark", "invalid"),
        ("percent", b"sid=the-cookie%2Cx", "passed"),
        ("raw", b"sid=the-cookie,theme=dark", "invalid"),
        ("raw", b"sid=the-cookie theme=dark", "invalid"),
        ("connect", b"sid=s%3Athe-cookie.c2ln%2Fbmd", "idle"),
        ("connect", b"sid=s:the-cookie.c2ln", "idle"),
        ("connect", b"sid=s%3Aanother.c2ln", "passed"),
        ("connect", b"sid=the-cookie", "invalid"),
        ("connect", b"sid=s%3Athe-cookie", "invalid"),
        ("flask-signed", b"sid=the-cookie.c2ln", "idle"),
        ("flask-signed", b"sid=the.other.c2ln", "passed"),
        ("flask-signed", b"sid=the-cookie", "invalid"),
        ("flask-signed", b"sid=the%2dcookie.c2ln", "invalid"),
        ("spring", b"sid=dGhlLWNvb2tpZQ==", "idle"),
        ("spring", b"sid=dGhlLWNvb2tpZQ", "idle"),
        ("spring", b"sid=the-cookie", "invalid"),
    ],
)
async def test_a_second_spelling_of_an_id_is_no_other_session(form: str, cookie: bytes, expected: str) -> None:
    asking = Asking(config(cookie_form=form))
    asking.feed.end(REFERENCE)
    assert await asking.ask((b"cookie", cookie)) == expected


@pytest.mark.parametrize("form", ["plain", "percent", "raw"])
@pytest.mark.parametrize(
    "cookie",
    [
        "theme=dark,sid=the-cookie",
        "theme=dark, sid=the-cookie",
        ",sid=the-cookie",
        "theme=dark sid=the-cookie",
        "theme=dark\tsid=the-cookie",
        "theme=dark\xa0sid =the-cookie",
        "theme=dark,sid\t=the-cookie",
        "sid=live,sid=the-cookie",
        "sid=live; theme=dark sid=the-cookie",
        "\xa0sid\x85=the-cookie",
        "theme=dark;\x1csid=the-cookie",
    ],
)
async def test_an_ended_session_is_not_hidden_by_how_its_cookie_is_written(form: str, cookie: str) -> None:
    asking = Asking(config(cookie_form=form))
    asking.feed.end(REFERENCE)
    assert await asking.ask((b"cookie", cookie.encode("latin-1"))) in {"invalid", "idle"}


async def test_cookies_that_only_look_like_it_pass() -> None:
    for cookie in (b"sid=live; next=/x?sid=1&b=2", b"sid=live;xsid=a, b;theme=the sid", b"other=a b; sid=live"):
        assert await Asking().ask((b"cookie", cookie)) == "passed"


async def test_a_tokens_cookie_is_not_hidden_either(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "one"})
    asking = await Asking(config(jwks=str(key_set_file(tmp_path / "k", key)), token_cookie="tok")).keys()
    asking.feed.end(session_reference("s-1"))
    token = signed(key, claims())
    for cookie in (f"a=b,tok={token}", f"a=b tok={token}", f"tok={token},a=b"):
        assert await asking.ask((b"cookie", cookie.encode())) == "invalid"


@pytest.mark.parametrize("written", ["Bearer {}", "bearer\t{}", "BEARER  \t{} ", "Bearer\xa0{}"])
async def test_a_bearer_token_is_seen_whatever_stands_before_it(tmp_path: Path, written: str) -> None:
    key = ECKey.generate_key("P-256", {"kid": "one"})
    asking = await Asking(config(jwks=str(key_set_file(tmp_path / "k", key)))).keys()
    asking.feed.end(session_reference("s-1"))
    header = written.format(signed(key, claims())).encode("latin-1")
    assert await asking.ask((b"authorization", header)) == "idle"
    for other in (b"", b"Bearer", b"Bearer ", b"Bearerx y", b"Basic YTpi"):
        assert await asking.ask((b"authorization", other)) == "nobody's"


async def test_an_ended_session_is_not_hidden_behind_a_live_one(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "one"})
    asking = await Asking(config(cookie="sid", jwks=str(key_set_file(tmp_path / "k", key)))).keys()
    asking.feed.end(REFERENCE)
    live = bearer(signed(key, claims()))
    assert await asking.ask(live) == "passed"
    assert await asking.ask(live, COOKIE) == await asking.ask(COOKIE, live) == "idle"
    assert await asking.ask((b"cookie", b"sid=live; sid=the-cookie")) == "idle"
    assert await asking.ask((b"cookie", b"sid=the-cookie"), (b"cookie", b"sid=live")) == "idle"
    assert await asking.ask((b"cookie", b"sid=live"), bearer("opaque")) == "invalid"
    assert await asking.ask((b"cookie", b"sid=live"), (b"authorization", b"Basic YTpi")) == "passed"
    assert await asking.ask((b"cookie", b";".join(b"sid=%d" % number for number in range(9)))) == "invalid"


async def test_bearer_tokens_may_be_somebody_elses_business(tmp_path: Path) -> None:
    jwks = str(key_set_file(tmp_path / "k", ECKey.generate_key("P-256")))
    asking = await Asking(config(jwks=jwks, bearer=False, token_cookie="tok")).keys()
    assert await asking.ask(bearer("opaque")) == "nobody's"


async def test_nothing_that_a_client_sends_is_in_metrics_or_answers(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", {"kid": "one"})
    asking = await Asking(config(cookie="sid", jwks=str(key_set_file(tmp_path / "k", key)))).keys()
    token = signed(key, claims(sid="secret-sid"))
    for headers in ([COOKIE], [bearer(token)], [bearer("x.secret.y")], [(b"cookie", b'sid="secret-id"')]):
        answer = await asking.sidecar.answer("GET", b"/check/secret-path", headers)
        shown = bytes(answer.body) + repr(answer.raw_headers).encode()
        assert b"secret" not in shown
        assert b"the-cookie" not in shown
    text = asking.sidecar.metrics.text()
    assert b"secret" not in text
    assert b'lapse_sidecar_refused_total{cause="invalid"} 2.0' in text
    assert b'lapse_sidecar_passed_total{session="live"} 2.0' in text
    assert b"lapse_guard_fresh 1.0" in text
