"""How applications of a framework are guarded: `asgi` for any ASGI application, `fastapi` for FastAPI."""
