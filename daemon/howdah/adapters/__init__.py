"""Enqueue over other drivers than asyncpg: a module for each, which imports it only as a type."""
