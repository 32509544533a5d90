"""How are the WebSockets of a Django project guarded? (Channels)

application = ProtocolTypeRouter({
    "http": get_asgi_application(),
    "websocket": AuthMiddlewareStack(LapseMiddleware(URLRouter([...]))),
})

The session is Django's, which AuthMiddlewareStack has put into the scope, or what LAPSE["IDENTIFY"] makes of the
handshake; guard and publisher are those of the project's other requests. The rules are those of ../asgi.py.
"""

from collections.abc import Callable
from io import BytesIO

from channels.db import database_sync_to_async
from django.core.handlers.asgi import ASGIRequest

from lapse.consumers.frameworks import asgi
from lapse.consumers.frameworks.django import sessions
from lapse.consumers.frameworks.django.settings import enforcement
from lapse.consumers.frameworks.identity import Identity
from lapse.schemas import ConfigError

__all__ = ["LapseMiddleware"]


class LapseMiddleware(asgi.LapseMiddleware):
    """Guards what Channels routes; consumers find `scope["lapse.session"]`.

    Args:
        app: what is guarded, as a URLRouter.
        background: by scope, whether a connection is no activity.
        touch_on_message: whether each message from the client is a touch.

    Raises:
        ConfigError: the project's LAPSE dictionary is wrong.
    """

    def __init__(
        self,
        app: asgi.ASGIApp,
        *,
        background: Callable[[asgi.Scope], bool] | None = None,
        touch_on_message: bool = True,
    ) -> None:
        lapse = enforcement()
        super().__init__(
            app,
            guard=lapse.guard,
            publisher=lapse.publisher,
            identify=database_sync_to_async(_identify),
            key=lapse.gate.key,
            background=background,
            touch_on_message=touch_on_message,
        )


def _identify(scope: asgi.Scope) -> Identity | None:
    lapse = enforcement()
    # What Django's own functions take: a handshake is a GET, and the scope does not say so.
    request = ASGIRequest({"method": "GET", **scope}, BytesIO())
    if lapse.identify is not None:
        return lapse.identify(request)
    if "session" not in scope:
        raise ConfigError("no session in the scope: let Lapse's middleware stand within Channels' AuthMiddlewareStack")
    request.session, request.user = scope["session"], scope.get("user")
    told = sessions.told(request)
    if told is not None:
        return told
    identity = sessions.of_session(request, lapse)
    if identity is not None:
        request.session.save()  # a login from before has got its id here; a WebSocket saves nothing by itself
    return identity
