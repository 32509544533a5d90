"""How are applications guarded? A module for each framework; what they share is in the others.

asgi, fastapi, starlette, litestar    the middleware, and what is around it, for asyncio
wsgi, flask                           for threads and forked processes
django, grpc                          for both
django_data                           what Django's session data says of the login, for the appliers too
identity                              whose request it is: cookie, JWT, or your own callable
gate, marks, streams, problem         check and touch, what routes say of themselves, streams that end, the answer
extension                             what starlette and litestar share
"""
