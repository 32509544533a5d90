"""The views of the project. They know nothing of Lapse, but for the one that streams from a thread."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from django.urls import include, path


def me(request: Any) -> HttpResponse:
    return HttpResponse(request.user.get_username())


def events(request: Any) -> StreamingHttpResponse:
    def from_a_thread() -> Iterator[str]:
        yield "data: hello\n\n"
        while not request.lapse_over.wait(5):
            yield ": still here\n\n"

    async def in_the_loop() -> AsyncIterator[str]:
        yield "data: hello\n\n"
        while True:
            await asyncio.sleep(5)
            yield ": still here\n\n"

    parts = in_the_loop() if hasattr(request, "scope") else from_a_thread()
    return StreamingHttpResponse(parts, content_type="text/event-stream")


urlpatterns = [
    path("", me),
    path("events", events),
    path("accounts/", include("django.contrib.auth.urls")),
]
