"""How are applications guarded? A module for each framework; what they share is in the others.

asgi, wsgi, fastapi, flask      the middleware, or the extension
identity                        whose request it is: cookie, JWT, or your own callable
gate, marks, streams, problem   the check and the touch, what routes say of themselves, streams that end, the answer
"""
