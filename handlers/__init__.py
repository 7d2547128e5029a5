"""The application's jobs. Importing this package registers the handlers of all of them.

The modules imported here hold the kinds, one module a subject; to write one, read `accounts` and begin with `log_user_activity`. The
others are what they need, each opened once per worker and reached as `job.resources["…"]`:

- the outside: `outside` (HTTP services that we trust) with `auth` and `chat`, `telegram`, `mail` with `letters`, and for addresses that
  users gave `fetching` with `addresses`, `bodies`, `fetch_errors`
- files: `storage`, `gallery` (a post's images), `sources` (a document's file)
- work that may kill its process: `imaging` with `pixels`, `subprocesses` with `documents` and `filetypes`
- texts: `summaries`, `sentences`, `outlines`, `rendering`
- `settings`: all that begins with APP_
"""

from handlers import accounts, campaigns, courses, images, notifications, posts

__all__ = ["accounts", "campaigns", "courses", "images", "notifications", "posts"]
