"""OAuth 2: access tokens for a CRM's API, which all workers have in common.

https://www.rfc-editor.org/rfc/rfc6749
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from bridge.errors import Permanent, Retryable, SourceUnavailable
from bridge.outbound import Api
from bridge.sources.calling import object_of

EARLY_S = 60.0  # a token is not used in its last minute: a call under way should not see it end
LIFE_S = 600.0  # where nothing is said
LONGEST_S = 86_400.0


@dataclass
class AccessTokens:
    """Gives the access token of one account; a refused one is replaced.

    *base_url* and *path*: the token endpoint, often of another host than the API. *form*: what it is asked, with
    the grant type, client id, secret and refresh token. One thread fetches, the others wait; so do other
    processes, where the `Api` has a shared `Access`.
    """

    title: str
    connection: str
    base_url: str
    path: str
    form: Mapping[str, str] = field(repr=False)
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _token: str = ""
    _use_until: float = 0.0
    _refused: str = ""

    def current(self, api: Api) -> str:
        """Return a token that is good for a call by *api*.

        Raises:
            SourceUnavailable: none is given.
        """
        with self._lock:
            if not self._token or self.clock() >= self._use_until:
                self._token, left_s = api.access.token(
                    lambda: self._fetch(api), key=self._key(), refused=self._refused
                )
                self._use_until = self.clock() + left_s
            return self._token

    def drop(self, token: str) -> None:
        """Forget *token*, which was refused, unless another thread has replaced it by now."""
        with self._lock:
            if self._token == token:
                self._token, self._refused = "", token

    def _key(self) -> str:
        """Return a secret that is another one as soon as the token is another account's."""
        return "\n".join([self.base_url, *(f"{name}={value}" for name, value in sorted(self.form.items()))])

    def _fetch(self, api: Api) -> tuple[str, float]:
        asking = Api(self.base_url, session=api.session, total_timeout_s=api.total_timeout_s)
        try:
            reply = asking.call(
                "POST",
                self.path,
                content=urlencode(self.form).encode(),
                headers={"Content-Type": "application/x-www-form-urlencoded"},
                confidential=True,
            )
        except (Retryable, Permanent) as error:
            raise SourceUnavailable(f"{self.title} gives no access now: {error}") from error
        if not reply.ok:
            refused = 400 <= reply.status < 500 and reply.status not in {408, 429}
            why = ": check the client id, the secret and the refresh token" if refused else ""
            raise SourceUnavailable(
                f"{self.title} gives no access token for {self.connection} (HTTP {reply.status}){why}. "
                "Bridge tries again by itself.",
                retry_after_s=reply.retry_after_s,
            )
        body = object_of(reply.json_or_none())
        token = body.get("access_token")
        # Some answer 200 with an error in it.
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SourceUnavailable(
                f"{self.title} answered {self.connection} without an access token. Bridge tries again by itself."
            )
        return token, max(_life_s(body.get("expires_in")) - EARLY_S, 1.0)


def _life_s(said: object) -> float:
    """Return how long a token lives, where *said* is a number of seconds or a text of one."""
    text = str(said)
    if isinstance(said, bool) or not re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", text):
        return LIFE_S
    return min(float(text), LONGEST_S)
