"""Signatures: ours are RFC 9421, hold only for the very request that was signed, and refusing never raises."""

from __future__ import annotations

import base64
import datetime
import secrets

import pytest
from http_message_signatures import HTTPMessageSigner, HTTPMessageVerifier, HTTPSignatureKeyResolver, algorithms
from hypothesis import example, given
from hypothesis import strategies as st
from signed_requests import BODY, NOW, SECRET, Headers, make_record, replaced, signed_headers, without

from aiotaskqueue import signing
from aiotaskqueue._headers import task_headers
from aiotaskqueue.delivery import _base
from aiotaskqueue.errors import ConfigError
from aiotaskqueue.signing import KeyRing, Refusal, RefusalReason, Verdict, content_digest, sign, verify_body, verify_head

OTHER_SECRET = bytes(range(100, 140))
SIGNED_NAMES = (
    "X-AppEngine-QueueName",
    "X-AppEngine-TaskName",
    "X-AppEngine-TaskRetryCount",
    "X-AppEngine-TaskExecutionCount",
    "X-AppEngine-TaskETA",
    "X-TaskQueue-Task",
    "X-TaskQueue-Attempt",
    "X-TaskQueue-Deadline",
    "Content-Digest",
)
GENUINE = signed_headers(make_record(url="/worker?a=1"))
SIGNATURE_INPUT = dict(GENUINE)["Signature-Input"]


def verify(
    headers: Headers = GENUINE,
    *,
    method: str = "POST",
    path: str = "/worker",
    query: str = "a=1",
    now: float = NOW,
    keys: KeyRing | None = None,
) -> Verdict | RefusalReason:
    """Return the verdict about the request, genuine unless changed, or the reason of the refusal."""
    result = verify_head(keys or KeyRing([SECRET]), method=method, path=path, query=query, headers=headers, now=now)
    return result.reason if isinstance(result, Refusal) else result


def verified(headers: Headers = GENUINE, **request: str) -> Verdict:
    """Return the verdict about a request that must be genuine."""
    verdict = verify(headers, **request)  # type: ignore[arg-type]
    assert isinstance(verdict, Verdict)
    return verdict


# --- what is accepted ----------------------------------------------------------------------------------------------


def test_genuine_request() -> None:
    """A request is genuine that comes as it was signed, and the verdict says whose and until when."""
    verdict = verified()

    assert ("000102030405060708090a0b0c0d0e0f", "7", NOW + 31) == (verdict.uuid, verdict.attempt, verdict.expires)
    assert verify_body(verdict, BODY)


def test_profile_text() -> None:
    """The form of the signature is exactly that of the profile (SPEC 4.7)."""
    assert (
        'taskqueue=("@method" "@path" "@query" "content-digest" "x-appengine-queuename" "x-appengine-taskname" '
        '"x-appengine-taskretrycount" "x-appengine-taskexecutioncount" "x-appengine-tasketa" "x-taskqueue-task" '
        '"x-taskqueue-attempt" "x-taskqueue-deadline")'
        f';created={NOW};expires={NOW + 31};keyid="{KeyRing([SECRET]).keyid}";tag="aiotaskqueue"'
    ) == SIGNATURE_INPUT


def test_digest_of_no_body() -> None:
    """A request without a body has the digest of the empty one (RFC 9530, FIPS 180-4)."""
    assert content_digest(b"") == "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"


@pytest.mark.parametrize(("deadline_seconds", "lifetime"), [(1, 2), (30.0, 31), (0.5, 2), (30.001, 32)])
def test_lifetime(deadline_seconds: float, lifetime: int) -> None:
    """A signature is good for the deadline and the grace, rounded up to whole seconds."""
    headers = signed_headers(make_record(url="/worker?a=1"), deadline_seconds=deadline_seconds)

    assert NOW + lifetime == verified(headers).expires


def test_grace_is_the_deliverys() -> None:
    """Signatures last as long as deliveries wait."""
    assert _base.GRACE_SECONDS == signing.GRACE_SECONDS


def test_header_names_in_any_case() -> None:
    """The case of header names does not matter (RFC 9110 section 5.1)."""
    assert isinstance(verify([(name.upper(), value) for name, value in GENUINE]), Verdict)


def test_other_headers_are_free() -> None:
    """Headers that a proxy adds are not covered, and are in the verdict for who wants them."""
    verdict = verified([*GENUINE, ("Via", "1.1 proxy"), ("Via", "1.1 other")])

    assert verdict.fields["via"] == "1.1 other"


# --- another implementation ----------------------------------------------------------------------------------------


class Secrets(HTTPSignatureKeyResolver):
    """Gives the other implementation our secret, by our name for it."""

    def resolve_public_key(self, key_id: str) -> bytes | None:
        """Return the one secret that there is."""
        return SECRET if key_id == KeyRing([SECRET]).keyid else None

    resolve_private_key = resolve_public_key


class Message:
    """A request as the other implementation wants it."""

    method = "POST"
    url = "http://localhost/worker?a=1"

    def __init__(self, headers: Headers) -> None:
        self.headers = dict(headers)


def test_other_implementation_verifies_ours() -> None:
    """An independent implementation of RFC 9421 accepts our signature and sees all that it covers."""
    message = Message(signed_headers(make_record(url="/worker?a=1"), created=int(datetime.datetime.now().timestamp())))
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Secrets())

    (result,) = verifier.verify(message, expect_tag="aiotaskqueue")

    assert result.label == "taskqueue"
    assert ['"@method"', '"@path"', '"@query"', '"content-digest"', *(f'"{name}"' for name in signing.SIGNED_HEADERS)] == [
        name for name in result.covered_components if name != '"@signature-params"'
    ]


def other_signer() -> HTTPMessageSigner:
    """Return the other implementation, which knows our secret."""
    return HTTPMessageSigner(signature_algorithm=algorithms.HMAC_SHA256, key_resolver=Secrets())


def test_other_implementation_signs_the_same() -> None:
    """An independent implementation of RFC 9421 and RFC 9530 makes of our profile the very signature that we make."""
    message = Message(without(GENUINE, "Signature"))
    # Its `sign` has a fixed order of parameters, which is not ours, so its parts are put together here.
    names: list[object] = other_signer()._parse_covered_component_ids(
        ("@method", "@path", "@query", "content-digest", *signing.SIGNED_HEADERS)
    )  # type: ignore[no-untyped-call]
    parameters = {"created": NOW, "expires": NOW + 31, "keyid": KeyRing([SECRET]).keyid, "tag": "aiotaskqueue"}
    text, *_ = other_signer()._build_signature_base(message, covered_component_ids=names, signature_params=parameters)
    signature = algorithms.HMAC_SHA256(private_key=SECRET).sign(text.encode())  # type: ignore[no-untyped-call]

    assert f"taskqueue=:{base64.b64encode(signature).decode()}:" == dict(GENUINE)["Signature"]


def test_other_order_of_parameters() -> None:
    """What is valid by RFC 9421, but is not in our order, is refused; its digest is ours."""
    message = Message(task_headers(make_record(), deadline_seconds=30.0))
    other_signer().sign(
        message,
        body=BODY,
        key_id=KeyRing([SECRET]).keyid,
        created=datetime.datetime.fromtimestamp(NOW, datetime.UTC),
        expires=datetime.datetime.fromtimestamp(NOW + 31, datetime.UTC),
        label="taskqueue",
        tag="aiotaskqueue",
        include_alg=False,
        covered_component_ids=("@method", "@path", "@query", "content-digest", *signing.SIGNED_HEADERS),
    )

    assert content_digest(BODY) == message.headers["Content-Digest"]
    assert verify(list(message.headers.items())) == RefusalReason.MALFORMED


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_line", [{"method": "PUT"}, {"path": "/workers"}, {"path": "/%77orker"}, {"query": "a=2"}, {"query": ""}])
def test_other_request_line(request_line: dict[str, str]) -> None:
    """Method, path and query are covered, as they were sent."""
    assert verify(**request_line) == RefusalReason.BAD_SIGNATURE  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SIGNED_NAMES)
def test_other_header(name: str) -> None:
    """Each signed header is covered."""
    assert verify(replaced(GENUINE, name, "1")) == RefusalReason.BAD_SIGNATURE


@pytest.mark.parametrize("name", SIGNED_NAMES)
def test_missing_header(name: str) -> None:
    """A request is refused that lacks a signed header."""
    assert verify(without(GENUINE, name)) == RefusalReason.MISSING_HEADER


@pytest.mark.parametrize("name", ["Signature", "Signature-Input"])
def test_unsigned(name: str) -> None:
    """A request without a signature is unsigned."""
    assert verify(without(GENUINE, name)) == RefusalReason.UNSIGNED


@pytest.mark.parametrize("name", [*SIGNED_NAMES, "Signature", "Signature-Input"])
@pytest.mark.parametrize(
    "spelling", [str, str.lower, str.upper, lambda name: name.replace("-", "_"), lambda name: name.replace("-", "_", 1)]
)
def test_signed_header_twice(name: str, spelling: type[str]) -> None:
    """A signed header that is there twice is refused, in any case, and with underscores, even with the same value."""
    twice = [*GENUINE, (spelling(name), dict(GENUINE)[name])]

    assert verify(twice) == RefusalReason.DUPLICATE_HEADER


@pytest.mark.parametrize("name", SIGNED_NAMES)
def test_underscores_instead(name: str) -> None:
    """A signed header that was renamed with underscores is refused."""
    renamed = [(key.replace("-", "_") if key == name else key, value) for key, value in GENUINE]

    assert verify(renamed) == RefusalReason.DUPLICATE_HEADER


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("taskqueue=", "sig1="),
        ("taskqueue=", "Taskqueue="),
        ('"@method" "@path"', '"@path" "@method"'),
        ('"@query" ', ""),
        ('"@query"', '"@query";req'),
        ('"@method"', '"@authority" "@method"'),
        ('"x-taskqueue-attempt" ', ""),
        (";created=", ";alg=hmac-sha256;created="),
        (f";created={NOW}", ""),
        (f";expires={NOW + 31}", ""),
        (f"created={NOW}", "created=+5"),
        (f"created={NOW}", "created=1e9"),
        (f"created={NOW}", "created=-5"),
        (f"created={NOW}", "created=1_000"),
        (f"created={NOW}", f"created={NOW}.0"),
        (f"created={NOW}", f'created="{NOW}"'),
        (f"created={NOW}", "created=\u0661\u0662"),
        (f"created={NOW}", "created=\uff11\uff12"),
        (f"created={NOW}", "created=" + "1" * 16),
        (f"expires={NOW + 31}", "expires=9e99"),
        ('tag="aiotaskqueue"', 'tag="other"'),
        (';tag="aiotaskqueue"', ""),
        ('tag="aiotaskqueue"', 'tag="aiotaskqueue";nonce="1"'),
        ('keyid="', 'keyid="x'),
        ("taskqueue=(", "taskqueue= ("),
    ],
)
def test_other_signature_input(old: str, new: str) -> None:
    """A Signature-Input in any other form than ours is refused, whatever RFC 9421 allows."""
    assert old in SIGNATURE_INPUT
    assert verify(replaced(GENUINE, "Signature-Input", SIGNATURE_INPUT.replace(old, new, 1))) == RefusalReason.MALFORMED


@pytest.mark.parametrize("text", ["", " ", "\n", SIGNATURE_INPUT + "\n", ", ".join([SIGNATURE_INPUT] * 50), "é", "\udcff", "x" * 1_000_000])
def test_nonsense_signature_input(text: str) -> None:
    """Nonsense in place of a Signature-Input, and 50 signatures, are refused."""
    assert verify(replaced(GENUINE, "Signature-Input", text)) == RefusalReason.MALFORMED


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "taskqueue=::",
        "taskqueue=:!:",
        "é",
        "\udcff",
        "\u0000",
        "x" * 1_000_000,
        dict(GENUINE)["Signature"].replace("=:", "=: ", 1),
    ],
)
def test_nonsense_signature(text: str) -> None:
    """Nonsense in place of a signature is refused, also what is not ASCII (RELIABILITY E25) or very long."""
    assert verify(replaced(GENUINE, "Signature", text)) == RefusalReason.BAD_SIGNATURE


def test_other_spelling_of_the_same_signature() -> None:
    """Base64 with other bits in its unused end decodes to the same bytes, and is refused."""
    signature = dict(GENUINE)["Signature"]
    last = signature[-3]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = signature[:-3] + alphabet[alphabet.index(last) ^ 1] + signature[-2:]

    assert base64.b64decode(signature[11:-1]) == base64.b64decode(other[11:-1])
    assert verify(replaced(GENUINE, "Signature", other)) == RefusalReason.BAD_SIGNATURE


def test_signature_of_another_task() -> None:
    """The signature of one task does not do for another."""
    other = dict(signed_headers(make_record(url="/worker?a=1", name="welcome-2")))

    assert verify(replaced(GENUINE, "Signature", other["Signature"])) == RefusalReason.BAD_SIGNATURE


def test_times_are_covered() -> None:
    """Nobody can make a signature last longer."""
    longer = SIGNATURE_INPUT.replace(f"expires={NOW + 31}", f"expires={NOW + 32}")

    assert verify(replaced(GENUINE, "Signature-Input", longer)) == RefusalReason.BAD_SIGNATURE


def test_value_that_is_not_ascii() -> None:
    """A signed header that is not ASCII is refused."""
    assert verify(replaced(GENUINE, "X-AppEngine-TaskName", "é\udcff")) == RefusalReason.MALFORMED


def test_line_break_cannot_move_a_boundary() -> None:
    """A value with a line break that imitates the next line is refused."""
    name, retries = "X-AppEngine-TaskName", "X-AppEngine-TaskRetryCount"
    moved = replaced(GENUINE, name, 'welcome-1\n"x-appengine-taskretrycount": 0')

    assert verify(replaced(moved, retries, "9")) == RefusalReason.BAD_SIGNATURE


@pytest.mark.parametrize(
    ("seconds", "reason"),
    [(-61, RefusalReason.EARLY), (-3600, RefusalReason.EARLY), (31.001, RefusalReason.EXPIRED), (3600, RefusalReason.EXPIRED)],
)
def test_outside_of_its_time(seconds: float, reason: RefusalReason) -> None:
    """A signature from more than a minute ahead is refused, and one that has expired."""
    assert verify(now=NOW + seconds) == reason


@pytest.mark.parametrize("seconds", [-60, 0, 30.999, 31])
def test_within_its_time(seconds: float) -> None:
    """A signature is good from a minute before it was made until it expires."""
    assert isinstance(verify(now=NOW + seconds), Verdict)


@pytest.mark.parametrize("body", [b"", BODY + b" ", BODY[:-1], b"key=valuf"])
def test_other_body(body: bytes) -> None:
    """Any other body is refused."""
    assert not verify_body(verified(), body)


TEXTS = {
    **{name: dict(GENUINE)[name] for name in (*SIGNED_NAMES, "Signature", "Signature-Input")},
    "method": "POST",
    "path": "/worker",
    "query": "a=1",
}


@pytest.mark.promise("P23")
@given(part=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_any_changed_byte(part: str, data: st.DataObject) -> None:
    """Whatever single character is changed, added or removed in any signed part, the request is refused."""
    text = TEXTS[part]
    at = data.draw(st.integers(0, len(text) - 1))
    new = data.draw(st.sampled_from(["", text[at] * 2]) | st.characters(max_codepoint=255).filter(lambda char: char != text[at]))
    changed = text[:at] + new + text[at + 1 :]

    if part in ("method", "path", "query"):
        assert isinstance(verify(**{part: changed}), RefusalReason)  # type: ignore[arg-type]
    else:
        assert isinstance(verify(replaced(GENUINE, part, changed)), RefusalReason)


@given(at=st.integers(0, len(BODY) - 1), byte=st.integers(1, 255))
def test_any_changed_byte_of_the_body(at: int, byte: int) -> None:
    """Whatever byte of the body is changed, it is refused."""
    changed = bytearray(BODY)
    changed[at] ^= byte

    assert not verify_body(verified(), bytes(changed))


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=40)


@given(
    headers=st.lists(st.tuples(st.sampled_from([name for name, _ in GENUINE]) | ANY_TEXT, ANY_TEXT), max_size=20),
    method=ANY_TEXT,
    path=ANY_TEXT,
    query=ANY_TEXT,
    now=st.floats(allow_nan=False),
)
@example(headers=GENUINE, method="\ud800", path="", query="", now=NOW)
def test_refusing_never_raises(headers: Headers, method: str, path: str, query: str, now: float) -> None:
    """Whatever is sent, the answer is a refusal and no exception."""
    assert isinstance(verify(headers, method=method, path=path, query=query, now=now), RefusalReason)


# --- signing -------------------------------------------------------------------------------------------------------


def test_sign_without_a_header() -> None:
    """Signing says which header is missing."""
    with pytest.raises(ValueError, match="Header 'x-appengine-queuename' is missing"):
        sign(KeyRing([SECRET]), method="POST", path="/", query="", headers=[], body=b"", created=NOW, deadline_seconds=30)


def test_sign_what_is_not_ascii() -> None:
    """Only ASCII can be signed: a URL is percent-encoded before."""
    with pytest.raises(ValueError, match="ascii"):
        signed_headers(make_record(url="/é"))


# --- secrets -------------------------------------------------------------------------------------------------------


def test_newest_signs_all_verify() -> None:
    """After a change of the secret the newest one signs, and the older one still verifies."""
    keys = KeyRing([OTHER_SECRET, SECRET])
    new = signed_headers(make_record(url="/worker?a=1"), keys=keys)

    assert isinstance(verify(keys=keys), Verdict)
    assert isinstance(verify(new, keys=keys), Verdict)
    assert verify(new) == RefusalReason.UNKNOWN_KEY


def test_old_secret_taken_away() -> None:
    """A secret that is no longer in the ring does not verify."""
    assert verify(keys=KeyRing([OTHER_SECRET])) == RefusalReason.UNKNOWN_KEY


def test_wrong_secret_of_the_same_name() -> None:
    """Who knows the name of the key but not the key signs in vain."""
    forged = signed_headers(make_record(url="/worker?a=1"), keys=KeyRing([OTHER_SECRET]))
    renamed = replaced(forged, "Signature-Input", SIGNATURE_INPUT)

    assert verify(renamed) == RefusalReason.BAD_SIGNATURE


@pytest.mark.parametrize("padding", ["", "="])
def test_secret_as_text(padding: str) -> None:
    """A secret may be given as base64url text, with or without padding."""
    text = base64.urlsafe_b64encode(SECRET).decode().rstrip("=") + padding

    assert KeyRing([SECRET]).keyid == KeyRing([text]).keyid


@given(st.binary(min_size=32, max_size=64).filter(lambda secret: not signing._is_guessable(secret)))
def test_keyid_is_16_characters(secret: bytes) -> None:
    """The name of a key fits in the header, whatever the secret."""
    keyid = KeyRing([secret]).keyid

    assert len(keyid) == 16
    assert keyid.replace("-", "").replace("_", "").isalnum()


@pytest.mark.parametrize(
    "make", [lambda: secrets.token_bytes(32), lambda: secrets.token_urlsafe(32), lambda: secrets.token_hex(32).encode()]
)
def test_random_secrets_are_accepted(make: type[bytes]) -> None:
    """What Python's `secrets` makes is accepted."""
    assert [] == [secret for secret in (make() for _ in range(200)) if not KeyRing([secret]).keyid]


@pytest.mark.parametrize(
    ("secret", "problem"),
    [
        (b"hunter2-" * 3, "has 24 bytes, fewer than 32; make one"),
        (secrets.token_bytes(31), "has 31 bytes"),
        (secrets.token_urlsafe(31), "has 31 bytes"),
        ("", "is not base64url text; make one"),
        ("hunter2 with spaces and more than 32 characters", "is not base64url text"),
        ("hunter2hunter3hunter4hunter5hunter6hunter7hunter8é", "is not base64url text"),
        ("a" * 45, "is not base64url text"),
        (b"\0" * 32, "repeats itself or is a known default; make one"),
        (b"changeme" * 4, "repeats itself"),
        ("changeme" * 6, "repeats itself"),
        (b"hunter2" * 6, "repeats itself"),
        (b"please-ChangeMe-before-you-deploy-this", "known default"),
        ("django-insecure-abcdefghijklmnopqrstuvwxyz0123456789", "known default"),
    ],
)
def test_unfit_secret(secret: bytes | str, problem: str) -> None:
    """A secret is refused that is short, no base64url text, or guessable, and the message does not show it."""
    with pytest.raises(ConfigError, match=problem) as caught:
        KeyRing([SECRET, secret])

    assert str(caught.value).startswith("Secret 2 (not shown) ")
    assert "hunter" not in str(caught.value)


@pytest.mark.parametrize("value", [None, 5, bytearray(SECRET)])
def test_secret_of_another_type(value: object) -> None:
    """A secret is bytes or text."""
    with pytest.raises(ConfigError, match=f"Secret 1 is of type {type(value).__name__}; give bytes or base64url text"):
        KeyRing([value])  # type: ignore[list-item]


@pytest.mark.parametrize("value", [[], (), SECRET, "text", None])
def test_no_list_of_secrets(value: object) -> None:
    """Secrets are a list, and not an empty one: a single secret would be taken for a list of letters."""
    with pytest.raises(ConfigError, match="list with at least one secret"):
        KeyRing(value)  # type: ignore[arg-type]


def test_repr_hides_the_secret() -> None:
    """The repr of a ring shows the names of its keys only."""
    keys = KeyRing([SECRET, OTHER_SECRET])

    assert f"<KeyRing {keys.keyid}, {KeyRing([OTHER_SECRET]).keyid}>" == repr(keys)
