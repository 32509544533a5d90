"""How is a service in any language guarded? By a sidecar that its proxy asks before it passes a request on.

    client -> proxy (nginx, Traefik, Caddy, Envoy) -- /check --> sidecar -> 200: the proxy passes the request on
                                                                         -> 401: the proxy answers with it

    config.py    what the sidecar is told                      asked.py     what request the proxy asks about
    logins.py    whose session it is (cookie or token)         routes.py    which paths have rules of their own
    cookies.py   which session id is in a cookie               metrics.py   what operators see
    tokens.py    is the token genuine                          keys.py      by which keys
    answers.py   what the proxy is told                        server.py    the process
    app.py       all of it as an ASGI application

It needs the extra `sidecar`. `lapse sidecar` runs it; docs/sidecar.md has the configuration of each proxy.
"""
