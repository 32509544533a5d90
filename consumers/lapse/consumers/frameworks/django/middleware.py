"""How are a Django project's requests guarded, under WSGI and ASGI?

    request -> nobody's:  passes untouched
            -> refused:   the session is flushed; a browser that goes to a page is sent to LOGIN_URL, anything else gets
                          401 problem+json. LOGIN_URL and views marked @unguarded go on as nobody's
            -> unknown:   the guard is stale: the view's @on_stale or ON_STALE says whether it goes on or gets 401,
                          also where no view is reached. LOGIN_URL and views marked @unguarded go on
            -> allowed:   goes on; what reaches a view is a touch, unless the view is marked @background or the request
                          has the header X-Lapse-Background: 1

A StreamingHttpResponse ends with its session: its iterator stops, an asynchronous one is cancelled where it waits. A
thread that waits in an iterator cannot be interrupted: it waits with `request.lapse_over`, an event that is set then.
"""

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.shortcuts import resolve_url
from django.urls import Resolver404, resolve

from lapse.consumers.frameworks.django import sessions
from lapse.consumers.frameworks.django.settings import enforcement
from lapse.consumers.frameworks.gate import BACKGROUND
from lapse.consumers.frameworks.identity import ActiveSession
from lapse.consumers.frameworks.marks import is_background, is_unguarded, on_stale_of
from lapse.consumers.frameworks.problem import HEADERS, STATUS, problem
from lapse.consumers.frameworks.streams import Stream, async_stream
from lapse.consumers.guard import DENIED_STALE, Decision, OnStale

__all__ = ["LapseMiddleware"]


class LapseMiddleware:
    """Stands behind AuthenticationMiddleware; views find `request.lapse` (ActiveSession), `request.lapse_over`."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        self._next = get_response
        self._is_async = iscoroutinefunction(get_response)
        self.process_view = self._process_view_async if self._is_async else self._process_view
        if self._is_async:
            markcoroutinefunction(self)

    def __call__(self, request: Any) -> Any:
        if self._is_async:
            return self._serve_async(request)
        refusal = self._enter(request)
        return self._leave(request, self._next(request)) if refusal is None else refusal

    async def _serve_async(self, request: Any) -> Any:
        if enforcement().identify is not None or sessions.may_have_session(request):
            # The session's engine may read a database, and a guard's first check waits: neither in the loop.
            refusal = await sync_to_async(self._enter)(request)
            if refusal is not None:
                return refusal
        response = await self._next(request)
        if getattr(request, "lapse", None) is not None and response.streaming and not response.is_async:
            return await sync_to_async(self._leave)(request, response)
        return self._leave(request, response)

    def _enter(self, request: Any) -> Any:
        """Return a refusal, or None."""
        lapse = enforcement()
        identity = sessions.of_session(request, lapse) if lapse.identify is None else lapse.identify(request)
        if identity is None:
            return None
        # What is to be done without enough knowledge hangs on the view, which a fresh guard need not find.
        session = lapse.gate.check(identity, None if lapse.guard.fresh else _on_stale(request))
        decision = session.decision
        if not decision.allowed:
            return _problem(decision) if decision.stale else self._refuse_ended(request, decision)
        request.lapse, request.lapse_over = session, threading.Event()
        return None

    def _process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> Any:
        session: ActiveSession | None = getattr(request, "lapse", None)
        if session is None or is_unguarded(view):
            return None
        if session.decision.stale and on_stale_of(view) == "deny" and not _is_login(request):
            return _problem(DENIED_STALE)  # another view than the path's: a middleware behind this one set the urlconf
        if request.headers.get(BACKGROUND) != "1" and not is_background(view):
            enforcement().gate.touch(session)
        return None

    async def _process_view_async(self, request: Any, view: Any, args: Any, kwargs: Any) -> Any:
        return self._process_view(request, view, args, kwargs)

    def _leave(self, request: Any, response: Any) -> Any:
        session: ActiveSession | None = getattr(request, "lapse", None)
        if session is None or not isinstance(response, StreamingHttpResponse) or isinstance(response, FileResponse):
            return response
        guard, parts = enforcement().guard, response.streaming_content
        if response.is_async:
            response.streaming_content = async_stream(parts, guard, session)
        else:
            response.streaming_content = Stream(parts, guard, session, request.lapse_over, lambda: _length(response))
        return response

    def _refuse_ended(self, request: Any, decision: Decision) -> Any:
        if enforcement().identify is None:
            sessions.forget(request)
        if _passes_all(request):
            return None
        if enforcement().is_api(request):
            return _problem(decision)
        # What was sent cannot be sent again by following a link.
        back_to = request.get_full_path() if request.method in ("GET", "HEAD") else settings.LOGIN_REDIRECT_URL
        response = redirect_to_login(resolve_url(back_to))
        response["cache-control"] = "no-store"
        return response


def _problem(decision: Decision) -> Any:
    response = HttpResponse(problem(decision), status=STATUS)
    for name, value in HEADERS:
        response[name.decode()] = value.decode()
    return response


def _passes_all(request: Any) -> bool:
    """Return whether the request goes to LOGIN_URL or to a view that serves everybody."""
    return _is_login(request) or is_unguarded(_view(request))


def _is_login(request: Any) -> bool:
    path: str = urlsplit(resolve_url(settings.LOGIN_URL)).path
    return bool(request.path == path)


def _on_stale(request: Any) -> OnStale | None:
    """Return what a stale guard does with the request, None where no view says it."""
    return "allow" if _passes_all(request) else on_stale_of(_view(request))


def _view(request: Any) -> Any:
    """Return the view that the request's path leads to by what is known here, or None."""
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None)).func
    except Resolver404:
        return None


def _length(response: Any) -> int | None:
    value = response.get("content-length", "")
    return int(value) if value.isdecimal() else None
