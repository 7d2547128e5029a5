"""The application's jobs, one module a subject. Importing this package registers the handlers of all of them."""

from handlers import accounts, courses, images, notifications, posts

__all__ = ["accounts", "courses", "images", "notifications", "posts"]
