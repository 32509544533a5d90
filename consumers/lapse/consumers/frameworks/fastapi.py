"""How is a FastAPI application guarded?

lapse = Lapse("localhost:9092", service="shop", identify=identify)
app = FastAPI(lifespan=lapse.lifespan)
lapse.install(app)

@app.get("/me")
async def me(session: CurrentSession) -> str:
    return session.subject
"""

from typing import Annotated

from fastapi import Depends

from lapse.consumers.frameworks.asgi import ActiveSession
from lapse.consumers.frameworks.starlette import Lapse, background, current_session, on_stale, unguarded

__all__ = ["CurrentSession", "Lapse", "background", "current_session", "on_stale", "unguarded"]

CurrentSession = Annotated[ActiveSession, Depends(current_session)]
"""The type of a parameter that is the request's session, and refuses requests without one."""
