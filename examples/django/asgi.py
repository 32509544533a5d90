"""The project under ASGI with WebSockets (pip install channels): `uvicorn --lifespan off asgi:application`."""

from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import path

http = get_asgi_application()  # sets Django up: what follows needs its settings

from lapse.consumers.frameworks.django.channels import LapseMiddleware  # noqa: E402


class Chat(AsyncWebsocketConsumer):  # type: ignore[misc]  # Channels ships no types
    async def connect(self) -> None:
        if self.scope["user"].is_authenticated:
            await self.accept()
        else:
            await self.close()

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        await self.send(text_data=text_data, bytes_data=bytes_data)


guarded = AuthMiddlewareStack(LapseMiddleware(URLRouter([path("chat", Chat.as_asgi())])))
application = ProtocolTypeRouter({"http": http, "websocket": AllowedHostsOriginValidator(guarded)})
