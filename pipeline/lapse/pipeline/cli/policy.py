"""`lapse policy`: when sessions must end.

A limit is never lifted by leaving it out: what is not given stays as it is, and a new policy must name both limits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapse.pipeline.cli import flags
from lapse.pipeline.cli.asking import by_whom
from lapse.pipeline.cli.command import command, fail, run_async, say, usage
from lapse.pipeline.cli.durations import NONE, BadDuration, format_duration, parse_duration
from lapse.pipeline.cli.options import Json, text_option
from lapse.pipeline.cli.output import print_json, print_table, printable
from lapse.pipeline.cli.refusals import explained

if TYPE_CHECKING:
    from lapse.pipeline.operations.policies import PolicyInForce
    from lapse.pipeline.settings import Settings
    from lapse.schemas import Policy

app = typer.Typer(help="Set and look at policies: when sessions must end.", no_args_is_help=True, rich_markup_mode=None)


# What services coalesce touches by unless told otherwise (touch_interval_ms of the publisher).
_TOUCH_INTERVAL_MS = 5_000


def _limit(flag: str, about: str) -> Any:
    return typer.Option(flag, metavar="DURATION", help=f"{about}.")


@command(app, "set", (*flags.LOG, "session_life_max_ms"))
def set_(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy's name, or `default`.")],
    idle: Annotated[str | None, _limit("--idle", "The longest pause between activities")] = None,
    absolute: Annotated[str | None, _limit("--absolute", "The longest session")] = None,
    warn_before: Annotated[
        str | None, _limit("--warn-before", "How long before its end a session is announced")
    ] = None,
    hold_max: Annotated[str | None, _limit("--hold-max", "The longest an upload or job counts as activity")] = None,
    token_life: Annotated[
        str | None, _limit("--token-life", "The longest life of tokens, where there is no absolute limit")
    ] = None,
    match_tenant: Annotated[
        list[str] | None,
        text_option("--match-tenant", "Apply it to this tenant's sessions; may be repeated."),
    ] = None,
    match_service: Annotated[
        list[str] | None,
        typer.Option(
            "--match-service", metavar="TEXT", help="Apply it to sessions that this service started; may be repeated."
        ),
    ] = None,
    match_attribute: Annotated[
        list[str] | None,
        typer.Option("--match-attribute", metavar="KEY=VALUE", help="Apply it to sessions with this; may be repeated."),
    ] = None,
    no_match: Annotated[
        bool, typer.Option("--no-match", help="Apply it only to sessions that name it, from now on.")
    ] = False,
    by: Annotated[str | None, text_option("--by", "Who sets it. [default: this user at this machine]")] = None,
    note: Annotated[str | None, text_option("--note", "Why, in words, for people.")] = None,
    json: Json = False,
) -> None:
    """Set a policy. It applies to live sessions too, within about a second.

    What is not given stays as it was; a new policy needs --idle and --absolute. The --match options together replace
    the rules that were there: each kind that is given must match, by any of its values.

    Durations are written 90s, 15m, 8h, 1h30m, 7d; `none` is no limit.
    """
    from lapse.pipeline.operations.policies import read_policies, refuse_senseless, set_policy
    from lapse.schemas import Policy, encode

    limits = _limits(idle=idle, absolute=absolute, warn_before=warn_before, hold_max=hold_max, token_life=token_life)
    match = _match(match_tenant, match_service, match_attribute, none=no_match)
    known = run_async(read_policies(settings)).get(name)
    if known is None and not {"idle_ms", "absolute_ms"} <= limits.keys():
        usage(f"{printable(name)} is a new policy: give --idle and --absolute (`none` where there is to be no limit)")
    before = known.policy.model_dump() if known is not None else {}
    with explained():
        policy = Policy.model_validate(before | limits | match | {"name": name, "by": by_whom(by), "note": note})
        refuse_senseless(policy, settings)
        encode(policy)
    version = run_async(set_policy(settings, policy))
    _warn(policy)
    if json:
        print_json(_row(policy, version, None))
    else:
        typer.echo(f"{printable(name)} is version {version}: {_summary(policy)}")


@command(app, "list")
def list_(settings: Settings, json: Json = False) -> None:
    """Print every policy in force."""
    from lapse.pipeline.operations.policies import read_policies

    found = run_async(read_policies(settings)).values()
    if json:
        for each in found:
            print_json(_row(each.policy, each.version, each.set_at))
        return
    print_table(
        ["policy", "version", "idle", "absolute", "warn before", "applies to"],
        (
            (
                each.policy.name,
                _version(each),
                format_duration(each.policy.idle_ms),
                format_duration(each.policy.absolute_ms),
                format_duration(each.policy.warn_before_ms),
                _applies_to(each.policy),
            )
            for each in found
        ),
    )


@command(app, "show")
def show(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The policy's name.")],
    json: Json = False,
) -> None:
    """Print one policy, whole."""
    from lapse.pipeline.operations.policies import read_policies

    known = run_async(read_policies(settings))
    each = known.get(name)
    if each is None:
        fail(f"there is no policy {printable(name)}; there are {', '.join(map(printable, known))}")
    if json:
        print_json(_row(each.policy, each.version, each.set_at))
        return
    policy = each.policy
    lines = {
        "policy": policy.name,
        "version": _version(each),
        "idle": format_duration(policy.idle_ms),
        "absolute": format_duration(policy.absolute_ms),
        "warn before": format_duration(policy.warn_before_ms),
        "hold max": format_duration(policy.hold_max_ms),
        "token life": format_duration(policy.token_life_ms),
        "applies to": _applies_to(policy),
        "by": policy.by or "",
        "note": policy.note or "",
    }
    for label, text in lines.items():
        if text:
            typer.echo(f"{label:<12} {printable(text)}")


def _limits(**given: str | None) -> dict[str, int | None]:
    """Return the limits that were given, under their names on the wire."""
    limits: dict[str, int | None] = {}
    for name, text in given.items():
        if text is None:
            continue
        try:
            limits[f"{name}_ms"] = None if text.strip().lower() == NONE else parse_duration(text)
        except BadDuration as bad:
            usage(f"--{name.replace('_', '-')}: {bad}, or `{NONE}`")
    return limits


def _match(
    tenants: list[str] | None, services: list[str] | None, attributes: list[str] | None, *, none: bool
) -> dict[str, Any]:
    """Return the rules that were given, as a change to a policy; empty if nothing was said about them."""
    if none:
        if tenants or services or attributes:
            usage("--no-match excludes the other --match options")
        return {"match": None}
    if not (tenants or services or attributes):
        return {}
    values: dict[str, list[str]] = {}
    for pair in attributes or ():
        key, equals, value = pair.partition("=")
        if not (key and equals and value):
            usage("--match-attribute is written KEY=VALUE")
        values.setdefault(key, []).append(value)
    return {"match": {"tenant": tenants or None, "service": services or None, "attributes": values or None}}


def _warn(policy: Policy) -> None:
    if policy.idle_ms is not None and policy.idle_ms <= _TOUCH_INTERVAL_MS:
        say(
            f"note: services report a session at most every {format_duration(_TOUCH_INTERVAL_MS)} unless their "
            f"touch_interval_ms is set lower; with an idle limit of {format_duration(policy.idle_ms)} it must be"
        )


def _row(policy: Policy, version: int | None, set_at: int | None) -> dict[str, Any]:
    return policy.model_dump(mode="json") | {"version": version, "set_at": set_at}


def _version(each: PolicyInForce) -> str:
    return "built in" if each.version is None else str(each.version)


def _summary(policy: Policy) -> str:
    warning = "" if policy.warn_before_ms is None else f", announced {format_duration(policy.warn_before_ms)} before"
    return f"idle {format_duration(policy.idle_ms)}, absolute {format_duration(policy.absolute_ms)}{warning}"


def _applies_to(policy: Policy) -> str:
    match = policy.match
    by_name = "sessions without a policy" if policy.name == "default" else "sessions that name it"
    if match is None or match.is_empty:
        return by_name
    rules = [*_any_of("tenant", match.tenant), *_any_of("service", match.service)]
    for key, values in sorted((match.attributes or {}).items()):
        rules += _any_of(key, values)
    return f"{by_name}, and {' and '.join(rules)}"


def _any_of(name: str, values: Iterable[str] | None) -> list[str]:
    return [] if values is None else [f"{name} {' or '.join(values)}"]
