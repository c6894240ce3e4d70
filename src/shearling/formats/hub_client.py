"""Requests to the Hugging Face Hub: asked again where that may help, taken up where they broke, told in plain words.

Requests, tokens and errors are those of `huggingface_hub`. The transfer is our own, since that library (from 1.18 on)
begins a broken file anew. It goes over plain HTTP, where it can be taken up, and never through Xet.
"""

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import BinaryIO, TypeVar

from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is of the network library below it
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # exported lazily, which mypy does not see
    build_hf_headers,
    hf_raise_for_status,
    parse_ratelimit_headers,
)

from shearling.errors import UserError
from shearling.progress import Advance

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds before another attempt, of attempts that brought nothing. After the last, a transfer is given up."""
LONGEST_WAIT = 300.0
"""Seconds that a server may ask us to wait."""
PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses that another attempt may mend."""

PUBLIC = "https://huggingface.co"
"""The address where HF_ENDPOINT gives no other."""

Answer = TypeVar("Answer")


class UnreachableError(UserError):
    """The Hub gave no answer; what is cached may still do. The text is without the mend.

    Attributes:
        mend: what to do where the cache does not help.
    """

    def __init__(self, text: str, mend: str = "run the command again later") -> None:
        super().__init__(text)
        self.mend = mend


class Client:
    """Asks the Hub at an address.

    Attributes:
        endpoint: the address.
        api: the library's own, at this address.

    Raises:
        UserError: the address is none of the web.
    """

    def __init__(self, endpoint: str, say: Callable[[str], None]) -> None:
        if not endpoint.startswith(("https://", "http://")):
            raise UserError(f"HF_ENDPOINT: {endpoint}: should begin with https:// or http://")
        self.endpoint = endpoint
        self.api = HfApi(endpoint, library_name="shearling")
        self._say = say
        self._answered = False  # something, since this was made

    def ask(self, repository: str, revision: str, question: Callable[[], Answer]) -> Answer:
        """An answer, asked for again where the Hub is busy. A host that cannot be reached is not asked twice.

        Raises:
            UnreachableError: there is no answer.
            UserError: there is no such repository or revision, or it may not be read.
        """
        failures = 0
        with self._explained(repository, revision):
            while True:
                try:
                    answer = question()
                    self._answered = True
                    return answer
                except HfHubHTTPError as error:
                    if not _may_pass(error):
                        raise
                    failures += 1
                    self._wait(repository, error, failures)

    def transfer(self, repository: str, revision: str, url: str, out: BinaryIO, size: int, advance: Advance) -> None:
        """Goes on writing `out`, which stands at its end, until it is `size` bytes long. Raises as `ask`.

        What breaks is taken up. A host that cannot be reached is not asked twice, unless there was an answer before.
        """
        failures = 0
        with self._explained(repository, revision):
            while (before := out.tell()) < size:
                try:
                    self._stream(url, out, size, advance)
                    problem: Exception = UnreachableError(f"{self.endpoint} closed the connection too early")
                except HTTPError as error:
                    if not (self._answered and _may_pass(error)):
                        raise
                    problem = error
                failures = 0 if out.tell() > before else failures + 1
                if out.tell() < size:
                    self._wait(repository, problem, failures)

    def _stream(self, url: str, out: BinaryIO, size: int, advance: Advance) -> None:
        """One request for what is missing of a file; no byte more than its size is taken.

        A token goes to the Hub only: the network library drops it where it is sent on to another host.
        """
        headers = {**build_hf_headers(library_name="shearling"), "Accept-Encoding": "identity"}
        if have := out.tell():
            headers["Range"] = f"bytes={have}-"
        with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            self._answered = True
            if have and response.status_code in (200, 416):  # it does not go on from there: begin anew
                out.seek(0)
                out.truncate()
                advance(-have)
            if response.status_code == 416:
                return
            hf_raise_for_status(response)
            for piece in response.iter_bytes():  # as they come: what waits to fill a larger piece is lost in a break
                advance(out.write(piece[: size - out.tell()]))
                if out.tell() == size:
                    return

    def _wait(self, what: str, problem: Exception, failures: int) -> None:
        """Waits as long as a server asks for, else a while that grows; raises the problem where it is time to stop."""
        asked = _seconds_asked(problem)
        if failures > len(WAITS) or (asked or 0) > LONGEST_WAIT:
            raise problem
        seconds = WAITS[max(failures - 1, 0)] if asked is None else asked
        self._say(f"{what}: {_in_words(problem)}: again in {seconds:g} s")
        time.sleep(seconds)

    @contextmanager
    def _explained(self, repository: str, revision: str) -> Iterator[None]:
        """Turns errors of the network and the Hub into what the user can do."""
        page, tokens = f"{self.endpoint}/{repository}", f"{self.endpoint}/settings/tokens"
        try:
            yield
        except GatedRepoError:
            raise UserError(f"{repository}: its owner asks for consent: accept the licence at {page},\n"
                            f"then set HF_TOKEN to a token from {tokens}, or run hf auth login") from None  # fmt: skip
        except RevisionNotFoundError:
            raise UserError(f"{repository}: {revision}: no such branch, tag or commit"
                            + self._did_you_mean(revision, lambda: self._revisions(repository))) from None  # fmt: skip
        except RepositoryNotFoundError:
            guess = self._did_you_mean(repository, lambda: self._neighbours(repository))
            raise UserError(f"{repository}: no such model on {self.endpoint}, or a private one, which needs HF_TOKEN"
                            f"{guess}") from None  # fmt: skip
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status in PASSING:
                raise UnreachableError(f"{self.endpoint}: {_in_words(error)}") from error
            mend = {
                401: f"HF_TOKEN, or what hf auth login stored, is not valid: make a token at {tokens}",
                403: f"your token may not read it: accept the licence at {page}, and give the token the right to read "
                "gated repositories",
            }.get(status, "see whether its page has it")
            raise UserError(f"{repository}: {_in_words(error)}: {mend}") from error
        except HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: HTTPError) -> UnreachableError:
        """Says which host gave no answer: the Hub sends on to others."""
        url, root = error.request.url, _root(error)
        text = f"{url.scheme}://{url.netloc.decode()} cannot be reached ({_in_words(error)})"
        if isinstance(root, ssl.SSLError):
            return UnreachableError(text, "see to this machine's clock and certificates, or to a proxy between")
        if isinstance(root, OSError):
            address = "" if self.endpoint == PUBLIC else ", or check HF_ENDPOINT"
            return UnreachableError(f"offline: {text}", f"run the command again where there is a network{address}")
        return UnreachableError(text)

    def _did_you_mean(self, name: str, ask: Callable[[], list[str]]) -> str:
        try:
            known = {other.casefold(): other for other in ask()}
        except HTTPError:
            return ""  # a guess is a courtesy: the mistake is told without it
        near = [known[match] for match in get_close_matches(name.casefold(), known, n=3)]
        return f": did you mean {' or '.join(near)}?" if near else ""

    def _revisions(self, repository: str) -> list[str]:
        refs = self.api.list_repo_refs(repository)
        return [ref.name for ref in (*refs.branches, *refs.tags)]

    def _neighbours(self, repository: str) -> list[str]:
        """The models of the same owner; where there is none, those of a like name."""
        owner, _, name = repository.partition("/")
        own = [model.id for model in self.api.list_models(author=owner, limit=200)]
        return own or [model.id for model in self.api.list_models(search=name, limit=20)]


def _may_pass(error: Exception) -> bool:
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in PASSING


def _seconds_asked(problem: Exception) -> float | None:
    if not isinstance(problem, HfHubHTTPError):
        return None
    limit = parse_ratelimit_headers(problem.response.headers)
    if limit and not limit.remaining:
        return float(limit.reset_in_seconds)
    after = problem.response.headers.get("Retry-After", "")
    return float(after) if after.isdecimal() else None


def _in_words(problem: Exception) -> str:
    if isinstance(problem, HfHubHTTPError):
        return f"HTTP {problem.response.status_code} {problem.response.reason_phrase}".rstrip()
    root = _root(problem)
    if isinstance(root, OSError) and root.strerror:
        return root.strerror
    return str(problem).splitlines()[0] if str(problem) else type(problem).__name__


def _root(problem: BaseException) -> BaseException:
    """What the system said, below what the network library made of it and, in part, hides as its cause."""
    while below := problem.__cause__ or problem.__context__:
        problem = below
    return problem
