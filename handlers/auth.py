"""The auth server: it knows who may sign in, and gives everybody their id. GoTrue's admin interface, at APP_AUTH_URL."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from handlers.outside import Answer, OutsideError, RefusedError, call
from handlers.settings import settings

if TYPE_CHECKING:
    import aiohttp

_SERVICE = "the auth server"
_PAGE, _MOST_PAGES = 200, 500


class UserRefusedError(OutsideError):
    """The auth server will never take this user, and says why: no attempt mends that."""


async def ensure_user(session: aiohttp.ClientSession, email: str, full_name: str, password: str) -> str:
    """Make somebody a user of the auth server, and give the id; of one who is there already, too, whose password stays.

    Safe to repeat: the server has an e-mail address once. Raises UserRefusedError, and what `call` raises.
    """
    user = {"email": email, "password": password, "email_confirm": True, "user_metadata": {"full_name": full_name}}
    try:
        # It may be repeated although it is a POST: whoever was made by a lost request is found below.
        answer = await _ask(session, "POST", json=user, repeatable=True)
    except RefusedError as refused:
        if refused.answer.status not in {400, 409, 422}:
            raise  # our token or our address is wrong, not this user
        found = await _find(session, email)
        if found is None:
            raise UserRefusedError(_SERVICE, refused.problem) from None
        return _id(found)
    return _id(answer.body)


async def _find(session: aiohttp.ClientSession, email: str) -> Any:
    """Look a user up by e-mail. The filter finds parts of addresses and names, too, and an older server has none."""
    for page in range(1, _MOST_PAGES + 1):
        answer = await _ask(session, "GET", params={"filter": email, "page": str(page), "per_page": str(_PAGE)})
        users = answer.body.get("users") if isinstance(answer.body, dict) else None
        if not users:
            return None
        for user in users:
            if str(user.get("email")).casefold() == email.casefold():
                return user
    return None


async def _ask(session: aiohttp.ClientSession, method: str, **request: Any) -> Answer:
    token = settings().auth_token
    headers = {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}
    return await call(
        session, _SERVICE, method, settings().auth_url.rstrip("/") + "/admin/users", headers=headers, **request
    )


def _id(user: Any) -> str:
    try:
        return str(UUID(user["id"]))
    except (TypeError, KeyError, ValueError):
        raise OutsideError(_SERVICE, "it gave no id of a user") from None
