"""The application's jobs, one module a subject. Importing this package registers the handlers of all of them."""

from handlers import accounts, campaigns, courses, images, notifications, posts

__all__ = ["accounts", "campaigns", "courses", "images", "notifications", "posts"]
