"""Who may use the server: hosts, tokens, origins; encrypted connections."""

import asyncio

import pytest

aiohttp = pytest.importorskip("aiohttp")

from aiohttp.test_utils import TestServer  # noqa: E402

from stylekernels.serve.access import Access  # noqa: E402
from stylekernels.serve.app import make_app  # noqa: E402
from stylekernels.serve.certificate import own_certificate, self_signed  # noqa: E402
from stylekernels.serve.painter import Painter  # noqa: E402
from tests.pictures import picture  # noqa: E402
from tests.serving import LOOPBACK, frame_message, make_styles, serving  # noqa: E402

TOKEN = "correct-horse"
LOCKED = Access(token=TOKEN)
LOOK = {"look": '{"style": "style_0"}'}


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    return make_styles(tmp_path_factory.mktemp("styles"), 1)


async def refusal(answer):
    """Return status and text of a refusal, which must be one line."""
    text = await answer.text()
    assert "\n" not in text
    return answer.status, text


async def paints(client, **options):
    async with client.ws_connect("/live", **options) as socket:
        await socket.send_bytes(frame_message(picture(48, 64))[0])
        assert (await socket.receive_bytes(timeout=30)).startswith(b"SKF1")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:99", "127.0.0.1:8000", "[::1]:8000"])
def test_this_machine_may_be_called_by_its_own_names(styles, host):
    async def check():
        async with serving(styles) as client:
            assert (await client.get("/", headers={"Host": host})).status == 200
            await paints(client, headers={"Host": host})

    asyncio.run(check())


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8000", "[::1", ""]
)
def test_other_names_are_refused(styles, host):
    async def check():
        async with serving(styles) as client:
            for path in ("/", "/styles.json", "/live", "/style.css"):
                status, text = await refusal(await client.get(path, headers={"Host": host}))
                assert status == 403
                assert text.startswith("Host: expected 127.0.0.1 or ::1 or localhost, got ")
            await paints(client)

    asyncio.run(check())


@pytest.mark.parametrize("origin", ["https://evil.example", "http://localhost:1", "null", ""])
def test_pages_of_other_origins_are_refused(styles, origin):
    async def check():
        async with serving(styles) as client:
            headers = {"Origin": origin}
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await client.ws_connect("/live", headers=headers)
            assert refused.value.status == 403
            answer = await client.post("/paint", params=LOOK, data=b"", headers=headers)
            status, text = await refusal(answer)
            assert status == 403
            assert text.startswith(f"Origin: expected http://127.0.0.1:{client.port}, got ")
            assert len(client.clients) == 0
            await paints(client, headers={"Origin": f"http://127.0.0.1:{client.port}"})

    asyncio.run(check())


@pytest.mark.parametrize(
    "token", [None, "", "correct-hors", "correct-horse1", "Correct-horse", "é"]
)
def test_a_wrong_token_opens_nothing(styles, token):
    async def check():
        async with serving(styles, LOCKED) as client:
            query = {} if token is None else {"token": token}
            for path in ("/", "/styles.json", "/live", "/style.css", "/previews/style_0.jpg"):
                status, text = await refusal(
                    await client.get(path, params=query, allow_redirects=False)
                )
                assert (status, text[:7]) == (403, "token: ")
            status, _ = await refusal(await client.post("/paint", params={**LOOK, **query}))
            assert status == 403

    asyncio.run(check())


def test_the_right_token_becomes_a_cookie(styles):
    async def check():
        async with serving(styles, LOCKED) as client:
            answer = await client.get("/", params={"token": TOKEN}, allow_redirects=False)
            assert (answer.status, answer.headers["Location"]) == (302, "/")
            (cookie,) = answer.cookies.values()
            assert (cookie.value, cookie["httponly"], cookie["samesite"]) == (TOKEN, True, "Lax")
            assert cookie.key == f"stylekernels-token-{client.port}"
            assert (await client.get("/")).status == 200  # with the cookie
            await paints(client)

    asyncio.run(check())


def test_two_servers_of_a_host_keep_their_own_tokens(styles):
    """A browser sends the cookies of both to either."""

    async def check():
        other = Access(token="other-token")
        async with serving(styles, LOCKED) as first, serving(styles, other) as second:
            cookies = {}
            for client, token in ((first, TOKEN), (second, "other-token")):
                answer = await client.get("/", params={"token": token}, allow_redirects=False)
                cookies |= {name: cookie.value for name, cookie in answer.cookies.items()}
            sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in cookies.items())}
            for client in (first, second):
                client.session.cookie_jar.clear()
                assert (await client.get("/", headers=sent)).status == 200

    asyncio.run(check())


@pytest.mark.parametrize(
    "line",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: stylekernels-token=\xff\xfe",
        b"GET /?token=%FF%FE HTTP/1.1\r\nHost: localhost",
        b"GET /?token=%ED%A0%80 HTTP/1.1\r\nHost: localhost",
        b"GET / HTTP/1.1\r\nHost: \xff\xfe@localhost",
        b"POST /paint HTTP/1.1\r\nHost: localhost\r\nOrigin: http://\xff\xfe",
        b"POST /paint HTTP/1.1\r\nHost: \xff\xfe@localhost\r\nOrigin: http://other",
    ],
)
@pytest.mark.parametrize("access", [LOCKED, LOOPBACK], ids=["token", "loopback"])
def test_bytes_that_are_no_text_are_refused(styles, access, line):
    async def check():
        async with serving(styles, access) as client:
            reader, writer = await asyncio.open_connection(client.host, client.port)
            writer.write(line + b"\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 30)
            writer.close()
            allowed = access is LOOPBACK and line.startswith(b"GET") and b"@" not in line
            assert int(answer.split()[1]) in ((200,) if allowed else (400, 403)), answer[:500]

    asyncio.run(check())


def test_programs_put_the_token_into_each_address(styles):
    async def check():
        async with serving(styles, LOCKED) as client:
            await paints(client, params={"token": TOKEN})
            assert not [*client.session.cookie_jar]

    asyncio.run(check())


def test_a_server_open_to_all_without_a_token_cannot_be_made():
    with pytest.raises(ValueError, match=r"^token: expected one where hosts is None, got None$"):
        Access()


def test_a_self_signed_certificate_is_for_the_names_given(styles):
    pytest.importorskip("cryptography")
    name, (_, path) = next(iter(styles.items()))

    async def check():
        context, fingerprint = self_signed(["localhost", "127.0.0.1", "::1"])
        server = TestServer(make_app(Painter({name: path}), name, LOCKED), scheme="https")
        await server.start_server(ssl=context)
        address = f"https://127.0.0.1:{server.port}/?token={TOKEN}"
        trusted = aiohttp.Fingerprint(bytes.fromhex(fingerprint.replace(":", "")))
        async with aiohttp.ClientSession() as session:
            async with session.get(address, ssl=trusted, allow_redirects=False) as answer:
                assert answer.status == 302
                (cookie,) = answer.cookies.values()
                assert cookie["secure"]
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(address)
        await server.close()

    asyncio.run(check())


def test_a_certificate_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "note.pem").write_text("hello")
    for name in ("note.pem", "missing.pem"):
        with pytest.raises(ValueError, match=r"^certificate: expected a certificate and its key"):
            own_certificate(tmp_path / name, tmp_path / name)
