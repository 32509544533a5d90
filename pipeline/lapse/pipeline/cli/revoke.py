"""`lapse revoke`: end sessions now.

A session is named by its reference. The secret session id is never an argument, since arguments are kept in the shell's
history and shown to every user of the machine; `--raw` reads it from standard input, and only its hash goes on.
"""

from __future__ import annotations

import getpass
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lapse.pipeline.cli.asking import by_whom, confirm
from lapse.pipeline.cli.command import command, run_async, usage
from lapse.pipeline.cli.options import Json, text_option
from lapse.pipeline.cli.output import print_json, printable
from lapse.pipeline.cli.refusals import explained

if TYPE_CHECKING:
    from lapse.pipeline.settings import Settings
    from lapse.schemas import Revocation

app = typer.Typer(
    help="End sessions now: one, a subject's, a tenant's, or everyone's.", no_args_is_help=True, rich_markup_mode=None
)

Reason = Annotated[
    str, typer.Option("--reason", metavar="WORD", help="Why, as a word: admin, credential_change, incident, ...")
]
Note = Annotated[str | None, text_option("--note", "Why, in words, for people.")]
By = Annotated[str | None, text_option("--by", "Who orders it. [default: this user at this machine]")]
Tenant = Annotated[str | None, text_option("--tenant", "The tenant of the subject.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@command(app, "session", dashed=True)
def session(
    settings: Settings,
    reason: Reason,
    ref: Annotated[
        str | None, typer.Argument(metavar="REF", help="The session's reference; not with --raw.", show_default=False)
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Read the secret session id from standard input and hash it.")
    ] = False,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--key-file", metavar="FILE", help="With --raw: the services' key of references; else LAPSE_REFERENCE_KEY."
        ),
    ] = None,
    as_is: Annotated[
        bool, typer.Option("--as-is", help="Take REF though it does not look like a reference (a foreign client's).")
    ] = False,
    subject: Annotated[str | None, text_option("--subject", "The session's subject, if known.")] = None,
    tenant: Tenant = None,
    note: Note = None,
    by: By = None,
    json: Json = False,
) -> None:
    """End one session, whenever it started.

    With --subject (and --tenant, where it has one) the order goes to the partition that holds the session, else to all
    of them.
    """
    reference = _raw_reference(settings, ref, key_file) if raw else _reference(ref, as_is=as_is)
    if key_file is not None and not raw:
        usage("--key-file is for --raw: a reference is already hashed")
    _order(settings, {"session": reference, "subject": subject, "tenant": tenant}, reason, note, by, as_json=json)


@command(app, "subject")
def subject(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="SUBJECT", help="The user or machine that logged in.")],
    reason: Reason,
    tenant: Tenant = None,
    note: Note = None,
    by: By = None,
    json: Json = False,
) -> None:
    """End all sessions of a subject that started until now; later logins pass.

    A subject without a tenant is another one than the subject of that name in a tenant.
    """
    _order(settings, {"subject": name, "tenant": tenant}, reason, note, by, as_json=json)


@command(app, "tenant")
def tenant(
    settings: Settings,
    name: Annotated[str, typer.Argument(metavar="TENANT", help="The organisation.")],
    reason: Reason,
    note: Note = None,
    by: By = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """End the sessions of all subjects of a tenant that started until now; later logins pass."""
    question = f"End every session of tenant {printable(name)} ({settings.prefix} at {settings.kafka})?"
    _order(settings, {"tenant": name}, reason, note, by, question=question, yes=yes, as_json=json)


@command(app, "everyone")
def everyone(
    settings: Settings, reason: Reason, note: Note = None, by: By = None, yes: Yes = False, json: Json = False
) -> None:
    """End every session that started until now, of all tenants; later logins pass."""
    question = f"End EVERY session of every tenant ({settings.prefix} at {settings.kafka})?"
    _order(settings, {"everyone": True}, reason, note, by, question=question, yes=yes, as_json=json)


def _reference(ref: str | None, *, as_is: bool) -> str:
    from lapse.schemas import is_session_reference

    if ref is None:
        usage("which session? Give its reference, or --raw and the session id on standard input")
    if not as_is and ref.startswith("--") and not is_session_reference(ref):
        usage("there is no such option, nor is it a session reference; see `lapse revoke session --help`")
    if not as_is and not is_session_reference(ref):
        # Not repeated: it may be the secret itself, and errors go into logs.
        usage(
            "REF is not a session reference (22 characters of A-Z a-z 0-9 _ -). If it is a session id, it is now in "
            "your shell's history: remove it there, and give it on standard input with --raw. If it is the reference "
            "of a client that makes them otherwise, add --as-is"
        )
    return ref


def _raw_reference(settings: Settings, ref: str | None, key_file: Path | None) -> str:
    from lapse.schemas import session_reference

    if ref is not None:
        usage("--raw reads the session id from standard input: give no REF")
    try:
        key = key_file.read_bytes().strip() if key_file is not None else settings.reference_key
    except OSError as broken:
        usage(f"--key-file cannot be read: {broken}")
    if key == b"":
        usage(f"--key-file {key_file} is empty")
    # Typed at a terminal it is not shown. Only the end of its line is cut off: a session id may hold anything else.
    secret = getpass.getpass("Session id: ") if sys.stdin.isatty() else sys.stdin.buffer.readline().rstrip(b"\r\n")
    if not secret:
        usage("--raw: standard input has no session id on its first line")
    return session_reference(secret, key)


def _order(
    settings: Settings,
    target: dict[str, Any],
    reason: str,
    note: str | None,
    by: str | None,
    *,
    question: str | None = None,
    yes: bool = False,
    as_json: bool,
) -> None:
    from lapse.pipeline.operations.revocations import new_revocation_id, revoke
    from lapse.schemas import Revocation, encode

    with explained():
        revocation = Revocation(id=new_revocation_id(), **target, reason=reason, note=note, by=by_whom(by))
        encode(revocation)
    if question is not None:
        confirm(question, yes=yes)
    ordered = run_async(revoke(settings, revocation))
    if as_json:
        offsets = [{"partition": partition, "offset": offset} for partition, offset in ordered.offsets.items()]
        print_json(revocation.model_dump(mode="json") | {"ordered_at": ordered.ordered_at, "written": offsets})
    else:
        typer.echo(f"{revocation.id}  {_described(revocation)}  in {_where(ordered.offsets)}")


def _described(revocation: Revocation) -> str:
    who = f"{revocation.tenant}/{revocation.subject}" if revocation.tenant is not None else revocation.subject
    match revocation.target:
        case "session":
            return f"session {printable(revocation.session or '')}"
        case "subject":
            return f"subject {printable(who or '')}"
        case "tenant":
            return f"tenant {printable(revocation.tenant or '')}"
        case "everyone":
            return "everyone"


def _where(offsets: dict[int, int]) -> str:
    if len(offsets) == 1:
        [(partition, offset)] = offsets.items()
        return f"partition {partition}, offset {offset}"
    return f"all {len(offsets)} partitions"
